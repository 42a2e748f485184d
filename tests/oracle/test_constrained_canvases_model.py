"""JSON out of a trained diffusion model, through the engine: valid by an independent judge."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec import structs

from benchmarks.decoders.running import LoadedModel, MeasuredRun, run_requests, serve
from benchmarks.tasks.case import HELD_OUT_SEEDS, Case
from benchmarks.tasks.catalog import make_case
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import ConstraintError, ConstraintLimits, ConstraintSpec
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, GenerateRequest

CASES = [make_case("json_extract", HELD_OUT_SEEDS[7], i) for i in range(6)]
# What the model was never trained to write.
FOREIGN: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 2, "maximum": 8},
        "names": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["animal", "legs", "names"],
    "additionalProperties": False,
}

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "maskbench-sample.jsonl.gz"
UNMASKERS: Sequence[Any] = ["auto", "off", ["threshold"], ["wino"], ["credit", "entropy-bound"]]


@pytest.fixture(scope="module")
def served() -> LoadedModel:
    return serve(EngineSettings(model="tiny-diffusion", threads=1, kv_cache_bytes=2**27))


def compiled(served: LoadedModel, schema: Mapping[str, Any]) -> CompiledConstraint:
    tokenizer = served.tokenizer
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    text = json.dumps(schema)
    done = compile_constraint(ConstraintSpec("json_schema", text), vocabulary, ConstraintLimits())
    return CompiledConstraint(text, done.table, done.min_tokens)


def answers(
    served: LoadedModel, schemas: Sequence[Mapping[str, Any]], streams: int, **fields: Any
) -> MeasuredRun:
    """Return the answers to CASES, each under its schema."""
    temperature, max_tokens = fields.pop("temperature", 0.0), fields.pop("max_tokens", 64)
    requests = [
        structs.replace(
            question(served, i, compiled(served, schema), max_tokens, temperature),
            decoding=resolve_decoding({**fields, "trace": True}, served.info.diffusion),
        )
        for i, schema in enumerate(schemas)
    ]
    return run_requests(served, requests, streams)


def question(
    served: LoadedModel,
    case: int,
    constraint: CompiledConstraint,
    max_tokens: int,
    temperature: float = 1.0,
) -> GenerateRequest:
    """Return what one of CASES asks, under a constraint."""
    message = {"role": "user", "content": CASES[case].prompt}
    return GenerateRequest(
        f"r{case}",
        chat_prompt(served.tokenizer, [message]),
        SamplingParams(temperature=temperature, seed=case),
        max_tokens,
        stop_token_ids=sorted(served.tokenizer.eos_token_ids),
        constraint=constraint,
    )


def schema_of(case: Case) -> Mapping[str, Any]:
    assert case.schema is not None
    return case.schema


def check(served: LoadedModel, run: MeasuredRun, schemas: Sequence[Mapping[str, Any]]) -> None:
    for answer, schema in zip(run.answers, schemas, strict=True):
        text = served.tokenizer.decode(answer.token_ids)
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"unmasker": "off"},
        {"unmasker": ["threshold"], "canvas": {"block_size": 8}},
        {"unmasker": ["wino"]},
        {"unmasker": ["local-leap", "dual-cache"], "canvas": {"attention": "full"}},
        {"unmasker": ["cfg-intersection", "threshold"]},
        {"unmasker": ["cfg-intersection", "free-dave"], "canvas": {"block_size": 8}},
        {"unmasker": ["cfg-intersection", "threshold"], "canvas": {"attention": "full"}},
    ],
    ids=str,
)
def test_answers_are_valid_json_of_their_schema(
    decoding: Mapping[str, Any], served: LoadedModel
) -> None:
    schemas = [FOREIGN if i % 2 else schema_of(case) for i, case in enumerate(CASES)]
    check(served, answers(served, schemas, 6, temperature=1.0, **decoding), schemas)
    budget = max(compiled(served, schema).min_tokens for schema in schemas)
    tight = answers(served, schemas, 6, max_tokens=budget, **decoding)
    check(served, tight, schemas)
    assert all(len(answer.token_ids) <= budget for answer in tight.answers)


def test_any_json_is_valid_for_many_seeds(served: LoadedModel) -> None:
    """A recursive grammar, at a temperature at which free answers are no JSON."""
    tokenizer = served.tokenizer
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    done = compile_constraint(ConstraintSpec("json_object", ""), vocabulary, ConstraintLimits())
    decoding = resolve_decoding(
        {"unmasker": ["cfg-intersection", {"name": "threshold", "threshold": 0.3}], "trace": True},
        served.info.diffusion,
    )
    requests = []
    for seed in range(24):
        params = SamplingParams(temperature=1.5, seed=seed)
        form = CompiledConstraint("json_object", done.table, done.min_tokens)
        one = question(served, seed % len(CASES), form, 24 + seed)
        requests.append(
            structs.replace(one, request_id=f"s{seed}", sampling=params, decoding=decoding)
        )
    run = run_requests(served, requests, 8)
    texts = [tokenizer.decode(answer.token_ids) for answer in run.answers]
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert len(set(texts)) > 8


def test_constrained_answers_depend_on_their_request_alone(served: LoadedModel) -> None:
    schemas = [schema_of(case) for case in CASES]
    alone, together = (
        answers(served, schemas, streams, temperature=1.0, unmasker="auto") for streams in (1, 6)
    )
    assert [a.token_ids for a in alone.answers] == [a.token_ids for a in together.answers]


def test_a_constraint_saves_passes(served: LoadedModel) -> None:
    """Fewer passes than tokens where every token of free text takes one."""
    run = answers(served, [schema_of(case) for case in CASES], 6, unmasker=["static"])
    assert all(answer.forwards < len(answer.token_ids) for answer in run.answers)


@pytest.mark.slow
def test_answers_are_valid_under_schemas_of_other_people(served: LoadedModel) -> None:
    """Every seventh schema of a corpus: a model that knows none of them, within 8 spare tokens."""
    if not CORPUS.exists():
        pytest.skip(f"{CORPUS.name} is not beside the repository; it has no licence to be inside")
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        schemas = [json.loads(line)["schema"] for line in islice(lines, 0, 700, 7)]
    judged = 0
    for number, schema in enumerate(schemas):
        try:
            constraint = compiled(served, schema)
        except ConstraintError:
            continue
        if constraint.min_tokens > 200:
            continue
        request = question(served, number % len(CASES), constraint, constraint.min_tokens + 8)
        named = {"unmasker": UNMASKERS[number % len(UNMASKERS)], "trace": True}
        decoding = resolve_decoding(named, served.info.diffusion)
        run = run_requests(served, [structs.replace(request, decoding=decoding)], 1)
        check(served, run, [schema])
        judged += 1
    assert judged > 60
