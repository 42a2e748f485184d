"""The table of a comparison: one line a row, plait's median, each peer's, and plait over peer."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import rows
from benchmarks.rows import Bench, Sample

# Key -> (title, measure). Start-up is measured where servers are started.
ROWS: dict[str, tuple[str, Callable[[Bench], Awaitable[Sample]]]] = {
    "single": ("1 stream, decode", rows.single),
    "ttft": (f"TTFT, {rows.PROMPT_TOKENS}-token prompt", rows.ttft),
    "c8": ("8 streams", rows.eight_streams),
    "c32": ("32 streams", rows.many_streams),
    "json": ("json_schema, 1 stream, decode", rows.json_single),
    "json8": ("json_schema, 8 streams", rows.json_streams),
    "copy": ("copy a JSON text, decode", rows.copy),
}
TITLES = {"gate": "gate, answers", "start": "start-up"} | {
    key: title for key, (title, _) in ROWS.items()
}
SMALLER_IS_BETTER = frozenset({"s", "ms"})


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of one server."""

    unit: str
    samples: Sequence[float]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The number that is compared."""
        return statistics.median(self.samples)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one server."""

    label: str
    rows: Mapping[str, Measured] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)  # of the machine's CPU time
    fault: str = ""  # why nothing was measured


def table(reports: Sequence[Report]) -> str:
    """Return a Markdown table; where plait is in it, peers' cells carry plait's ratio to them.

    A ratio above 1 says that plait is better, in every row.
    """
    measured = [report for report in reports if report.rows]
    own = next((report for report in measured if report.label == "plait"), None)
    keys = [key for key in TITLES if any(key in report.rows for report in measured)]
    header = ["", *(report.label for report in measured)]
    lines = [header, ["---", *("---:" for _ in measured)]]
    for key in keys:
        unit = next(report.rows[key].unit for report in measured if key in report.rows)
        cells = [_cell(report, own, key) for report in measured]
        lines.append([f"{TITLES[key]}, {unit}", *cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    faults = [f"{report.label}: {report.fault}" for report in reports if report.fault]
    return "\n".join([text, "", *faults]).rstrip()


def _cell(report: Report, own: Report | None, key: str) -> str:
    row = report.rows.get(key)
    if row is None:
        return "-"
    if row.unit == "right":
        return f"{row.median:.0f} of {row.notes['of']}"
    text = f"{row.median:.3g}"
    if "valid" in row.notes:
        text += f", {row.notes['valid']} of {row.notes['of']} valid"
    if own is None or own is report or key not in own.rows:
        return text
    ratio = own.rows[key].median / row.median
    return f"{text} ({1 / ratio if row.unit in SMALLER_IS_BETTER else ratio:.2f}x)"
