"""Objects extracted from texts, with and without their JSON Schema as response_format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jsonschema_rs

from benchmarks.decoders.cells import Sample, judged, requests_of, texts
from benchmarks.decoders.presets import Setting
from benchmarks.decoders.running import LoadedModel, MeasuredRun, RequestFailed, run_requests
from benchmarks.decoders.statistics import Interval, wilson
from benchmarks.tasks.case import Case
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import (
    ConstraintLimits,
    ConstraintSpec,
    canonical,
    content_key,
    vocabulary_fingerprint,
)
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.server.errors import ServerError
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.wire.messages import CompiledConstraint

TASK = "json_extract"
CASES = 300


@dataclass(frozen=True, slots=True)
class Extraction:
    """One setting over all cases."""

    setting: str
    constrained: bool
    valid: Interval  # share of answers that their schema accepts
    exact: Interval  # share of answers that are the right object
    forwards: float  # per answer
    tokens_per_forward: float


def extraction(
    served: LoadedModel, settings: Sequence[Setting], sample: Sample, streams: int
) -> tuple[list[Extraction], list[str]]:
    """Answer all cases with every setting, without their schemas and with them.

    With them also on a scaffold, where the setting names methods that it can stand beside.

    Returns:
        What was measured, and a sentence for each setting that can't be constrained.
    """
    cases = Sample(sample.seed, CASES, sample.templates).of(TASK)
    constraints = compiled(served.tokenizer, [case.schema or {} for case in cases])
    found, faults = [], []
    scaffolded = [with_scaffold(s) for s in settings if s.decoding.get("unmasker") != "off"]
    runs = [*product(settings, (None, constraints)), *((s, constraints) for s in scaffolded)]
    for setting, given in runs:
        try:
            run = run_requests(served, requests_of(served, setting, cases, given), streams)
        except (RequestFailed, ServerError) as error:
            faults.append(f"{setting.name}: {error}")
            continue
        found.append(_extraction(served, setting, cases, run, constrained=given is not None))
    return found, faults


def with_scaffold(setting: Setting) -> Setting:
    """Return a setting that puts a schema's literals in place ahead of their values."""
    methods = [*setting.decoding["unmasker"], "scaffold"]
    decoding = {**setting.decoding, "unmasker": methods}
    return setting.model_copy(update={"name": f"{setting.name} + scaffold", "decoding": decoding})


def compiled(
    tokenizer: Tokenizer, schemas: Sequence[Mapping[str, Any]]
) -> list[CompiledConstraint]:
    """Compile schemas for a model's vocabulary; equal ones once."""
    limits = ConstraintLimits()
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    vocabulary.prepare()
    fingerprint = vocabulary_fingerprint(vocabulary.token_bytes, vocabulary.eos_token_ids)
    known: dict[str, CompiledConstraint] = {}
    found = []
    for schema in schemas:
        spec = canonical(ConstraintSpec("json_schema", json.dumps(schema)))
        key = content_key(spec, limits, fingerprint)
        if key not in known:
            done = compile_constraint(spec, vocabulary, limits)
            known[key] = CompiledConstraint(key, done.table, done.min_tokens)
        found.append(known[key])
    return found


def is_valid(text: str, schema: Mapping[str, Any]) -> bool:
    """Tell whether a text is JSON that its schema accepts."""
    try:
        return jsonschema_rs.is_valid(dict(schema), json.loads(text))
    except json.JSONDecodeError:
        return False


def _extraction(
    served: LoadedModel,
    setting: Setting,
    cases: Sequence[Case],
    run: MeasuredRun,
    *,
    constrained: bool,
) -> Extraction:
    answered = zip(texts(served, run), cases, strict=True)
    valid = sum(is_valid(text, case.schema or {}) for text, case in answered)
    return Extraction(
        setting=setting.name,
        constrained=constrained,
        valid=wilson(valid, len(cases)),
        exact=wilson(sum(judged(served, cases, run)), len(cases)),
        forwards=run.forwards / len(cases),
        tokens_per_forward=run.tokens / run.forwards,
    )
