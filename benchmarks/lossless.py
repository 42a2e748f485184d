"""Law 2 on a real model: with any drafter, the tokens and logprobs that there are without.

    python -m benchmarks.lossless [--requests 500] [--weights fp32] [--drafters n-gram suffix]

Random requests (greedy and sampled, penalties, truncation, logprobs, a JSON schema for every
fourth) run without drafts, then with every drafter that the model's worker can serve, with drafts
of 1, 4, 8 or 16 tokens, whether they pay or not: half of the requests sixteen at a time, the other
half alone. Each difference is printed with the gap between the log-probabilities of the two tokens:
about 1e-5 is rounding, anything larger a mistake of cache, position or mask. Exit code 1 when there
is one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from msgspec.structs import replace

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.registry import methods
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.engine.engine import Engine
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings, WeightMode
from plait.server.wire.messages import CompiledConstraint, Delta, Failed, GenerateRequest

MODEL = "smollm2-135m-instruct"
TOLERANCE = 1e-6  # of a logprob
BATCH = 16
PLAIN = resolve_decoding({"drafter": "off"})
SIZES = (1, 4, 8, 16)
SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["name", "kind", "size"],
 "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["animal", "plant"]},
 "size": {"type": "integer", "minimum": 0, "maximum": 99}}}"""
TOPICS = ("a cat", "the sea", "an oak", "a fly", "moss", "rain", "a crow", "salt", "ferns", "bread")
TASKS = (
    "Describe {0}.",
    "Repeat after me: {0}, {0}, {0}, {0} and {0}, {0}, {0}.",
    "Count from one to ten, then say {0} three times.",
    "Write a Python function that prints {0} in a loop.",
    "Give me a JSON object about {0} with name, kind and size.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is compared."""

    tokens: tuple[int, ...]
    finish: str | None
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer leaves the one without drafts."""

    request: GenerateRequest
    drafter: str
    want: Answer
    have: Answer
    gap: float  # between the log-probabilities of the two tokens; 0 where the tokens agree

    def __str__(self) -> str:
        at = _first_difference(self.have.tokens, self.want.tokens)
        return (
            f"{self.request.request_id} {self.drafter}: token {at} is "
            f"{self.have.tokens[at : at + 1]} instead of {self.want.tokens[at : at + 1]}, "
            f"gap {self.gap:.2e}, {self.have.finish} and {self.want.finish}"
        )


def random_requests(count: int, *, seed: int = 0, max_tokens: int = 24) -> list[GenerateRequest]:
    """Return requests to the default model that use every parameter."""
    files, rng = resolve(MODEL), random.Random(seed)
    tokenizer = load_tokenizer(files)
    schema = _compiled(tokenizer)
    return [
        GenerateRequest(
            f"r{i}",
            _prompt(tokenizer, rng),
            _params(rng, tokenizer),
            48 if i % 4 == 0 else rng.randint(2, max_tokens),
            stop_token_ids=sorted(tokenizer.eos_token_ids),
            constraint=schema if i % 4 == 0 else None,
            n=2 if i % 10 == 1 else 1,
            arrived=float(i),
        )
        for i in range(count)
    ]


def served(capabilities: Sequence[str]) -> list[str]:
    """Return the drafters that a worker can serve and that promise to be lossless."""
    return sorted(
        name
        for (kind, name), method in methods().items()
        if kind == "drafter" and not method.lossy and method.needs <= set(capabilities)
    )


def answers(engine: Engine, requests: Sequence[GenerateRequest], batch: int) -> list[list[Answer]]:
    """Run the requests, `batch` at a time; return the answers of each, one per sequence."""
    found: dict[tuple[str, int], list[Delta]] = {}
    for first in range(0, len(requests), batch):
        for delta in _deltas(engine, requests[first : first + batch]):
            found.setdefault((delta.request_id, delta.index), []).append(delta)
    return [[_answer(found[r.request_id, i]) for i in range(r.n)] for r in requests]


def _deltas(engine: Engine, requests: Sequence[GenerateRequest]) -> Iterator[Delta]:
    """Run some requests together."""
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for report in engine.step():
            if isinstance(report, Failed):
                raise RuntimeError(f"{report.request_id}: {report.message}")
            if isinstance(report, Delta):
                yield report


def plain(engine: Engine, requests: Sequence[GenerateRequest]) -> list[list[Answer]]:
    """Return the answers without drafts."""
    return answers(engine, [replace(r, decoding=PLAIN) for r in requests], BATCH)


def differences(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    want: Sequence[Sequence[Answer]],
    drafter: str,
) -> Iterator[Difference]:
    """Yield what a drafter changes; predictions are the answers with a token replaced."""
    half = len(requests) // 2
    drafting = [
        replace(
            request,
            decoding=resolve_decoding(
                {
                    "drafter": drafter
                    if drafter == "auto"
                    else {"name": drafter, "always": True, "max_draft": SIZES[i // 4 % len(SIZES)]}
                }
            ),
            extras=PromptExtras(_edited(want[i][0].tokens)),
        )
        for i, request in enumerate(requests)
    ]
    have = answers(engine, drafting[:half], BATCH) + answers(engine, drafting[half:], 1)
    for request, ours, theirs in zip(drafting, have, want, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            if not _agree(one, other):
                yield Difference(request, drafter, other, one, _gap(engine, request, one, other))


def _prompt(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    task = rng.choice(TASKS).format(rng.choice(TOPICS))
    text = f"<|im_start|>user\n{task}<|im_end|>\n<|im_start|>assistant\n"
    return list(tokenizer.encode(text, special=True))


def _params(rng: random.Random, tokenizer: Tokenizer) -> SamplingParams:
    words = tokenizer.encode(" the cat loop", special=False)
    return SamplingParams(
        temperature=rng.choice((0.0, 0.3, 1.0)),
        top_k=rng.choice((0, 0, 40)),
        top_p=rng.choice((1.0, 1.0, 0.9)),
        min_p=rng.choice((0.0, 0.0, 0.05)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
        presence_penalty=rng.choice((0.0, 0.0, 0.6)),
        frequency_penalty=rng.choice((0.0, 0.0, 0.4)),
        logit_bias=rng.choice(({}, {}, {words[0]: 1.5})),
        bad_words=rng.choice(((), (), (tuple(words[-2:]),))),
        min_tokens=rng.choice((0, 0, 2)),
        seed=rng.getrandbits(64),
        logprobs=rng.choice((None, 0, 2)),
    )


def _compiled(tokenizer: Tokenizer) -> CompiledConstraint:
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    done = compile_constraint(ConstraintSpec("json_schema", SCHEMA), vocabulary, ConstraintLimits())
    return CompiledConstraint("lossless", done.table, done.min_tokens)


def _edited(tokens: Sequence[int]) -> list[int]:
    return [*tokens[:5], *tokens[6:]]


def _answer(deltas: Sequence[Delta]) -> Answer:
    return Answer(
        tuple(token for delta in deltas for token in delta.token_ids),
        deltas[-1].finish_reason,
        tuple(entry.logprob for delta in deltas for entry in delta.logprobs or ()),
    )


def _agree(one: Answer, other: Answer) -> bool:
    return (
        one.tokens == other.tokens
        and one.finish == other.finish
        and len(one.logprobs) == len(other.logprobs)
        and all(abs(a - b) <= TOLERANCE for a, b in zip(one.logprobs, other.logprobs, strict=True))
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _gap(engine: Engine, request: GenerateRequest, one: Answer, other: Answer) -> float:
    """Return by how much the model prefers one of the two tokens, if they stand in its best 20."""
    at = _first_difference(one.tokens, other.tokens)
    if at >= min(len(one.tokens), len(other.tokens)):
        return 0.0
    look = GenerateRequest(
        "gap",
        [*request.prompt_token_ids, *one.tokens[:at]],
        SamplingParams(temperature=0.0, logprobs=20),
        1,
        decoding=PLAIN,
    )
    (delta,) = _deltas(engine, [look])
    assert delta.logprobs is not None
    top = dict(delta.logprobs[0].top)
    least = min(top.values())
    return abs(top.get(one.tokens[at], least) - top.get(other.tokens[at], least))


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--weights", default="fp32", choices=get_args(WeightMode))
    parser.add_argument("--drafters", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights: WeightMode = options.weights
    engine, info = build_engine(EngineSettings(MODEL, weights=weights, draft_model="self:8"))
    requests = random_requests(options.requests, seed=options.seed)
    want = plain(engine, requests)
    total = 0
    for drafter in options.drafters or [*served(info.capabilities), "auto"]:
        begun, before = time.perf_counter(), engine.stats().counters.speculation
        found = list(differences(engine, requests, want, drafter))
        for difference in found:
            print(f"  {difference}")
        total += len(found)
        now = engine.stats().counters.speculation
        drafted = sum(now.draft_tokens.values()) - sum(before.draft_tokens.values())
        accepted = sum(now.accepted_tokens.values()) - sum(before.accepted_tokens.values())
        print(
            f"{drafter}: {len(found)} differences in {len(requests)} requests, "
            f"{accepted} of {drafted} drafted tokens accepted, "
            f"{time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
