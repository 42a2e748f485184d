"""The table of a comparison: a line for each row, plait's median, each peer's, plait over peer.

    python -m benchmarks.report [benchmarks/results/peers.json]

prints the table of results that were saved.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.machine import ROOT, Machine
from benchmarks.roofline import Bandwidth, share
from benchmarks.rows import Sample
from benchmarks.turns import paired_ratios

RESULTS = ROOT / "benchmarks" / "results"
OWN = ("plait", "plait-vllm")  # the first one that takes part is what others are compared with
GB, MIB = 1e9, 2**20


@dataclass(slots=True)
class Cell:
    """What one contender reached in one row; entry i comes from repetition i."""

    unit: str = ""
    values: list[float] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""  # why it was measured no further

    def add(self, sample: Sample) -> None:
        """Add a repetition."""
        self.unit = sample.unit
        self.values.append(sample.value)
        self.notes.append(dict(sample.notes))


@dataclass(slots=True)
class Usage:
    """CPU time that was used within a time."""

    used: float = 0.0
    seconds: float = 0.0

    def add(self, used: float, seconds: float) -> None:
        """Add what was used in some more seconds."""
        self.used += used
        self.seconds += seconds

    @property
    def share(self) -> float:
        """Used over elapsed."""
        return self.used / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Facts:
    """One server, apart from its speed."""

    version: str = ""
    starts: list[float] = field(default_factory=list)  # seconds until it was ready, by start
    right: str = ""  # answers of the gate
    memory_mib: float = 0.0  # after all rows
    weights_bytes: int = 0
    idle: Usage = field(default_factory=Usage)  # while others were measured
    fault: str = ""  # why nothing was measured


@dataclass(slots=True)
class Results:
    """All that a run has found so far."""

    date: str
    command: str
    machine: Machine
    contenders: dict[str, dict[str, str]]  # by label: title, and the server of its plain rows
    titles: dict[str, str]  # of rows, in the order of the table
    bandwidth: Bandwidth | None = None
    reps: int = 0
    servers: dict[str, Facts] = field(default_factory=dict)
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    others: Usage = field(default_factory=Usage)  # programs that are no part of the measurement


def table(results: Results) -> str:
    """Return a Markdown table and what must be known to read it.

    A ratio is the median of those of the repetitions, the range in brackets; above 1 plait is
    better, in every row.
    """
    labels = [label for label in results.contenders if _facts(results, label).starts]
    titles = [_title(results, label) for label in labels]
    own = own_label(results)
    lines = [["", *titles], ["---", *("---:" for _ in labels)]]
    for key, title in results.titles.items():
        cells = results.rows.get(key, {})
        if any(cell.values for cell in cells.values()):
            unit = next(cell.unit for cell in cells.values() if cell.values)
            lines.append([f"{title}, {unit}", *(_cell(cells, label, own) for label in labels)])
    lines += _facts_rows(results, labels)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *_notes(results)])


def own_label(results: Results) -> str:
    """Return which contender the others are compared with; "": none."""
    return next((label for label in OWN if label in results.contenders), "")


def _facts(results: Results, label: str) -> Facts:
    return results.servers.get(results.contenders[label]["server"], Facts())


def _title(results: Results, label: str) -> str:
    version = _facts(results, label).version
    return f"{results.contenders[label]['title']} {version}".strip()


def _cell(cells: Mapping[str, Cell], label: str, own_one: str) -> str:
    cell = cells.get(label)
    if cell is None or not (cell.values or cell.fault):
        return "-"
    if cell.fault:
        return "failed"
    middle = statistics.median(cell.values)
    words = [_number(middle)]
    own = cells.get(own_one)
    if label == own_one:
        words[0] += _range(cell.values)
    elif own is not None and own.values and not own.fault:
        ratios = paired_ratios(own.values, cell.values, cell.unit)
        words.append(f"{statistics.median(ratios):.2f}x{_range(ratios)}")
    return ", ".join([*words, *_quality(cell.notes)])


def _range(values: Sequence[float]) -> str:
    """Return the range of more than one number in brackets."""
    return f" ({_number(min(values))}-{_number(max(values))})" if len(values) > 1 else ""


def _number(value: float) -> str:
    """Return three figures, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _quality(notes: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if "valid" in notes[0]:
        yield f"{sum(n['valid'] for n in notes)} of {sum(n['of'] for n in notes)} valid"
    if "similarity" in notes[0]:
        yield f"{statistics.median(n['similarity'] for n in notes):.0%} like it"


def _facts_rows(results: Results, labels: Sequence[str]) -> Iterable[list[str]]:
    facts = {label: _facts(results, label) for label in labels}
    own = own_label(results)
    memory = {label: each.memory_mib for label, each in facts.items()}
    starts = {label: each.starts[-1] for label, each in facts.items()}
    for title, values in (("memory, MiB", memory), ("start to ready, s", starts)):
        yield [title, *(_against(values, label, own) for label in labels)]
    if own:
        yield ["right answers of the gate", *(facts[label].right for label in labels)]
    if (bandwidth := results.bandwidth) is not None and (cells := results.rows.get("single")):
        shares = [_share(facts[label], cells.get(label), bandwidth) for label in labels]
        yield ["1 stream, share of the memory's bandwidth", *shares]


def _share(facts: Facts, cell: Cell | None, bandwidth: Bandwidth) -> str:
    if cell is None or not cell.values:
        return "-"
    rate = statistics.median(cell.values)
    return f"{share(facts.weights_bytes, rate, bandwidth.memory):.0%}"


def _against(values: Mapping[str, float], label: str, own: str) -> str:
    text = _number(values[label])
    if label == own or not values.get(own) or not values[label]:
        return text
    return f"{text}, {values[label] / values[own]:.2f}x"


def _notes(results: Results) -> Iterable[str]:
    """Return what stands below the table: how it was measured, and what went wrong."""
    machine = results.machine
    yield (
        f"{results.date[:10]}, {machine.cpu}, {machine.cores} cores ({machine.vector}), plait "
        f"{machine.plait}, `{results.command}`, {results.reps} repetitions. In brackets the range; "
        "a ratio above 1: plait is better."
    )
    yield from _bandwidth_note(results)
    idle = {name: each.idle.share for name, each in results.servers.items() if each.idle.seconds}
    parts = ", ".join(f"{name} {part:.1%}" for name, part in idle.items()) or "-"
    yield (
        f"CPU used while others were measured, of a core: {parts}. Programs that are no part "
        f"of this used {results.others.share:.0%} of the machine."
    )
    faults = {name: each.fault for name, each in results.servers.items() if each.fault}
    for key, cells in results.rows.items():
        faults |= {f"{label}, {key}": c.fault for label, c in cells.items() if c.fault}
    yield from (f"{name}: {fault}" for name, fault in faults.items())


def _bandwidth_note(results: Results) -> Iterable[str]:
    if (found := results.bandwidth) is None:
        return
    sizes = {name: each.weights_bytes for name, each in results.servers.items()}
    weights = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items() if size)
    yield (
        f"Read in a second: {found.memory / GB:.1f} GB of memory (an array of "
        f"{found.array_bytes / MIB:.0f} MiB), {found.weights / GB:.1f} GB of an array as large as "
        f"plait's weights, which {'fit' if found.is_cached else 'do not fit'} the last cache "
        f"({found.cache_bytes / MIB:.0f} MiB). Weights: {weights}."
    )


def load(path: Path) -> Results:
    """Return results that were saved."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save(results: Results, path: Path) -> None:
    """Write results, and their table beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    path.write_bytes(text + b"\n")
    path.with_suffix(".md").write_text(table(results) + "\n")


if __name__ == "__main__":
    print(table(load(Path(sys.argv[1]) if sys.argv[1:] else RESULTS / "peers.json")))
