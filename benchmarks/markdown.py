"""What the reports of several benchmarks are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.decoders.statistics import Interval


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a Markdown table; its first columns are text, the others are numbers."""
    rule = ["---" if i < texts else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def percent(share: Interval) -> str:
    """Write a share with its interval, in percent."""
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
