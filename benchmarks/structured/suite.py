"""Schemas and their instances before several engines: what is accepted, refused and let through.

An instance is given as compact JSON, once with its keys as they stand and once in the schema's
order, since an engine may fix the order of keys. A valid one is matched if either is; an invalid
one is wrongly accepted if either is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.maskbench import Case, instance_text, key_order, reordered
from benchmarks.structured.isolation import Outcome, Verdict
from plait.decoders.constrained.schema.references.bundle import Library, bundle

COMPACT = (",", ":")
SLOW_S = 1.0  # CPU seconds from which on a schema is listed
ENFORCED: tuple[Outcome, ...] = ("accepted", "empty")
DIALECTS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
}

Judge = Callable[[str, Sequence[bytes | None]], Verdict]


@dataclass(frozen=True, slots=True)
class JudgedInstance:
    """An instance of an accepted schema: what the suite says of it, and the engine."""

    description: str
    is_valid: bool
    is_matched: bool  # in either order of keys
    is_matched_as_given: bool


@dataclass(frozen=True, slots=True)
class JudgedCase:
    """A schema before one engine; without instances where it was refused, or it failed."""

    group: str
    name: str
    outcome: Outcome
    reason: str = ""
    instances: Sequence[JudgedInstance] = ()
    compile_s: float = 0.0  # CPU time; 0 where it failed

    @property
    def is_right(self) -> bool:
        """Whether it is enforced, and exactly its valid instances are matched."""
        verdicts = (each.is_matched == each.is_valid for each in self.instances)
        return self.outcome in ENFORCED and all(verdicts)


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over some schemas; instances are those of enforced schemas."""

    schemas: int = 0
    enforced: int = 0  # accepted, or found to have no valid value
    right: int = 0  # enforced, and the verdict on every instance is right
    failed: int = 0  # neither enforced nor refused
    matched: int = 0  # valid instances
    matched_as_given: int = 0  # of those: without another order of keys
    refused: int = 0  # valid instances
    wrong: int = 0  # invalid instances that were accepted
    invalid: int = 0


@dataclass(frozen=True, slots=True)
class CompileTimes:
    """CPU seconds of compiling schemas, refused ones too, and loading what was compiled."""

    sum: float = 0.0
    median: float = 0.0
    p99: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineResult:
    """All that was found of one engine on one corpus."""

    version: str
    total: Counts
    groups: Mapping[str, Counts]
    reasons: Mapping[str, Sequence[str]] = field(default_factory=dict)  # schemas not accepted
    compile: CompileTimes = CompileTimes()
    slow: Mapping[str, float] = field(default_factory=dict)  # schemas, with their seconds
    refused_instances: Sequence[str] = ()
    wrong_instances: Sequence[str] = ()


def judge_case(
    case: Case, judge: Judge, dialect: str = "", library: Library | None = None
) -> JudgedCase:
    """Give a schema and its instances to an engine.

    Args:
        dialect: the `$schema` of a schema that names none.
        library: documents that the operator of a server has supplied.
    """
    ranks = key_order(case.schema)
    orders = [[test["data"], reordered(test["data"], ranks)] for test in case.tests]
    texts = [instance_text(data, COMPACT) for pair in orders for data in pair]
    schema = bundle(_in_dialect(case.schema, dialect), library or {})
    verdict = judge(json.dumps(schema), texts)
    instances = _instances(case, verdict.matched) if verdict.outcome in ENFORCED else []
    return JudgedCase(
        case.group, case.name, verdict.outcome, verdict.reason, instances, verdict.compile_s
    )


def _instances(case: Case, matched: Sequence[bool]) -> list[JudgedInstance]:
    return [
        JudgedInstance(test.get("description", ""), test["valid"], given or ordered, given)
        for test, given, ordered in zip(case.tests, matched[::2], matched[1::2], strict=True)
    ]


def _in_dialect(schema: Any, dialect: str) -> Any:
    if not isinstance(schema, dict) or not dialect:
        return schema
    return {"$schema": dialect} | schema


def count(judged: Iterable[JudgedCase]) -> Counts:
    """Return the sums over some schemas."""
    cases = list(judged)
    instances = [instance for case in cases for instance in case.instances]
    valid = [instance for instance in instances if instance.is_valid]
    invalid = [instance for instance in instances if not instance.is_valid]
    outcomes = Counter(case.outcome for case in cases)
    matched = sum(instance.is_matched for instance in valid)
    return Counts(
        schemas=len(cases),
        enforced=sum(outcomes[each] for each in ENFORCED),
        right=sum(case.is_right for case in cases),
        failed=outcomes["failed"],
        matched=matched,
        matched_as_given=sum(instance.is_matched_as_given for instance in valid),
        refused=len(valid) - matched,
        wrong=sum(instance.is_matched for instance in invalid),
        invalid=len(invalid),
    )


def summarise(version: str, judged: Sequence[JudgedCase]) -> EngineResult:
    """Return an engine's counts, by group and in total, and the instances it is wrong on."""
    groups: dict[str, list[JudgedCase]] = {}
    reasons: dict[str, list[str]] = {}
    for case in judged:
        groups.setdefault(case.group, []).append(case)
        if case.reason:
            reasons.setdefault(case.reason, []).append(case.name)
    return EngineResult(
        version=version,
        total=count(judged),
        groups={name: count(groups[name]) for name in sorted(groups)},
        reasons=dict(sorted(reasons.items(), key=lambda each: -len(each[1]))),
        compile=compile_times([case.compile_s for case in judged]),
        slow={case.name: case.compile_s for case in judged if case.compile_s > SLOW_S},
        refused_instances=_named(judged, is_valid=True, is_matched=False),
        wrong_instances=_named(judged, is_valid=False, is_matched=True),
    )


def compile_times(seconds: Sequence[float]) -> CompileTimes:
    """Return the sum, the quantiles and the most of some times."""
    median, p99, most = np.quantile(seconds or [0.0], (0.5, 0.99, 1))
    return CompileTimes(sum(seconds), float(median), float(p99), float(most))


def _named(judged: Iterable[JudgedCase], *, is_valid: bool, is_matched: bool) -> list[str]:
    return [
        f"{case.name} / {instance.description}".rstrip(" /")
        for case in judged
        for instance in case.instances
        if (instance.is_valid, instance.is_matched) == (is_valid, is_matched)
    ]
