"""What `python -m benchmarks.structured http` prints and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.decoders.statistics import wilson
from benchmarks.machine import Machine
from benchmarks.markdown import percent, table
from benchmarks.structured.coverage import Attempt, Coverage, Quantiles, Speed

MOST_REASONS = 12  # that are listed of a server


@dataclass(frozen=True, slots=True)
class ServerResult:
    """What was found of one server."""

    version: str
    model: str
    coverage: Coverage
    speed: Speed
    attempts: Sequence[Attempt] = ()


@dataclass(frozen=True, slots=True)
class HttpReport:
    """Everything that a run has found, and where."""

    date: str
    command: str
    machine: Machine
    servers: Mapping[str, ServerResult]
    left_out: Sequence[str] = field(default_factory=list)  # servers, and why; schemas


def markdown(report: HttpReport) -> str:
    """Return the whole report."""
    machine = report.machine
    head = (
        f"{report.date}; {machine.cpu}, {machine.cores} cores, plait {machine.plait}, "
        f"`{report.command}`\n\nIn brackets 95 % intervals (Wilson). Empirical coverage: the mean "
        "over all schemas, refused ones included, of the share of valid answers. Compliance: valid "
        "ones among the answers that end with stop. Times in ms: median / 99th percentile. Alone: "
        "the first request of each schema; the others come several at once. Compile time: as the "
        "server tells it, or TTFT less that of a request without a schema."
    )
    parts = ["# Structured output over HTTP", head]
    parts += [f"Left out: {reason}" for reason in report.left_out]
    if report.servers:
        parts.append(results_table(report.servers))
    for name, result in report.servers.items():
        reasons = list(result.coverage.reasons.items())[:MOST_REASONS]
        parts += [f"{name}:\n\n" + "\n".join(f"- {n} x {reason}" for reason, n in reasons)] * bool(
            reasons
        )
    return "\n\n".join(parts) + "\n"


def results_table(servers: Mapping[str, ServerResult]) -> str:
    """Return one column per server."""
    header = ["", *(f"{name} {result.version}".rstrip() for name, result in servers.items())]
    return table(
        header, ([title, *(cell(r) for r in servers.values())] for title, cell in ROWS.items())
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}, {percent(wilson(part, whole))}" if whole else "-"


def _times(times: Quantiles | None) -> str:
    return f"{times.median:.1f} / {times.p99:.1f}" if times else "-"


def _ends(coverage: Coverage) -> str:
    return ", ".join(f"{end} {count}" for end, count in coverage.ends.items()) or "-"


ROWS: Mapping[str, Callable[[ServerResult], str]] = {
    "declared coverage, %": lambda r: _share(r.coverage.accepted, r.coverage.schemas),
    "empirical coverage, %": lambda r: f"{100 * r.coverage.empirical:.1f}",
    "compliance, %": lambda r: _share(r.coverage.valid_stopped, r.coverage.stopped),
    "ends with stop, %": lambda r: _share(r.coverage.stopped, r.coverage.answers),
    "valid answers, %": lambda r: _share(r.coverage.valid, r.coverage.answers),
    "ends": lambda r: _ends(r.coverage),
    "compile time": lambda r: _times(r.speed.compile),
    "TTFT, alone": lambda r: _times(r.speed.first_ttft),
    "time per token, alone": lambda r: _times(r.speed.first_per_token),
    "TTFT": lambda r: _times(r.speed.later_ttft),
    "time per token": lambda r: _times(r.speed.later_per_token),
}
