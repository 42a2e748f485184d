"""JSONSchemaBench's metrics, computed from the answers of a server.

Declared coverage is the share of schemas whose first request is answered. Empirical coverage is
the mean over all schemas, refused ones included, of the share of answers that are valid. Compliance
is the share of valid ones among the answers that end with "stop".
Source: Geng et al. 2025, arXiv:2501.10868 (difference: there each schema has one output, and
compliance is empirical over declared coverage).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

STOP = "stop"

Outcome = Literal["answered", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one answer took, in milliseconds; None: it can't be told."""

    ttft: float
    per_token: float | None = None  # after the first chunk
    compile: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request with a schema, and what came of it."""

    index: int
    schema: str
    is_first: bool  # with this schema, and the only one at its time
    outcome: Outcome
    reason: str = ""  # why it was not answered, or what is wrong though it ends with stop
    finish_reason: str = ""
    is_valid: bool = False
    tokens: int = 0
    timing: Timing | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The middle and the slow end of some times in milliseconds."""

    count: int
    median: float
    p99: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """The counts of one server; answers are those to schemas that it accepts."""

    schemas: int
    accepted: int
    empirical: float  # 0..1
    answers: int
    valid: int
    stopped: int
    valid_stopped: int
    ends: Mapping[str, int] = field(default_factory=dict)  # answers by finish_reason
    reasons: Mapping[str, int] = field(default_factory=dict)  # of refused, failed and wrong ones


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of the first request of each schema, which came alone, and of the others."""

    compile: Quantiles | None
    first_ttft: Quantiles | None
    first_per_token: Quantiles | None
    later_ttft: Quantiles | None
    later_per_token: Quantiles | None


def coverage(attempts: Sequence[Attempt]) -> Coverage:
    """Return the shares and counts of the requests to one server."""
    accepted = {a.schema for a in attempts if a.is_first and a.outcome == "answered"}
    answers = [a for a in attempts if a.schema in accepted]
    stopped = [a for a in answers if a.finish_reason == STOP]
    schemas = {a.schema for a in attempts}
    shares = [_valid_share([a for a in answers if a.schema == schema]) for schema in accepted]
    return Coverage(
        schemas=len(schemas),
        accepted=len(accepted),
        empirical=sum(shares) / max(len(schemas), 1),
        answers=len(answers),
        valid=sum(a.is_valid for a in answers),
        stopped=len(stopped),
        valid_stopped=sum(a.is_valid for a in stopped),
        ends=dict(Counter(a.finish_reason or a.outcome for a in answers).most_common()),
        reasons=dict(Counter(a.reason for a in attempts if a.reason).most_common()),
    )


def _valid_share(answers: Sequence[Attempt]) -> float:
    return sum(a.is_valid for a in answers) / len(answers)


def speed(attempts: Sequence[Attempt]) -> Speed:
    """Return the quantiles of the times of one server."""
    first = [a.timing for a in attempts if a.timing and a.is_first]
    later = [a.timing for a in attempts if a.timing and not a.is_first]
    return Speed(
        compile=quantiles(timing.compile for timing in first),
        first_ttft=quantiles(timing.ttft for timing in first),
        first_per_token=quantiles(timing.per_token for timing in first),
        later_ttft=quantiles(timing.ttft for timing in later),
        later_per_token=quantiles(timing.per_token for timing in later),
    )


def quantiles(values: Iterable[float | None]) -> Quantiles | None:
    """Return median and 99th percentile of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    median, p99 = np.quantile(known, [0.5, 0.99])
    return Quantiles(len(known), float(median), float(p99))
