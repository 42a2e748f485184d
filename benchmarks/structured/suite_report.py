"""What `python -m benchmarks.structured suite` prints and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.machine import Machine
from benchmarks.markdown import table
from benchmarks.structured.engines import OWN
from benchmarks.structured.suite import SLOW_S, CompileTimes, Counts, EngineResult

MOST_REASONS = 12  # that are listed of an engine
COLUMNS = ("enforced", "matched", "refused", "wrong")


@dataclass(frozen=True, slots=True)
class Section:
    """One corpus, or one draft of it, before all engines."""

    title: str
    engines: Mapping[str, EngineResult]

    @property
    def own(self) -> list[EngineResult]:
        """Those of plait."""
        return [self.engines[name] for name in OWN if name in self.engines]


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Everything that a run has found, and where."""

    date: str
    command: str
    machine: Machine
    sections: Sequence[Section]
    left_out: Sequence[str] = field(default_factory=list)  # engines and corpora, and why

    @property
    def wrong(self) -> int:
        """How many invalid instances plait has accepted."""
        return sum(each.total.wrong for section in self.sections for each in section.own)


def markdown(report: SuiteReport) -> str:
    """Return the whole report."""
    machine = report.machine
    head = (
        f"{report.date}; {machine.cpu}, plait {machine.plait}, `{report.command}`\n\n"
        "enforced: schemas that are accepted, or of which the engine says that no value is valid; "
        "matched and refused: their valid instances; wrong: invalid ones that were accepted. The "
        "documents that the suite's schemas refer to are given to plait, as --schema-folder does. "
        "Instances are compact JSON, with their keys as given or "
        "in the schema's order. JSON holds the names of all that were refused or accepted wrongly. "
        "Compiling is CPU time, that of refused schemas too, and of loading what was compiled."
    )
    parts = ["# JSON schemas by keyword", head]
    parts += [f"Left out: {reason}" for reason in report.left_out]
    for section in report.sections:
        parts += [f"## {section.title}", section_table(section), *_notes(section)]
    return "\n\n".join(parts) + "\n"


def section_table(section: Section) -> str:
    """Return one row per group of schemas, and the totals."""
    results = section.engines.values()
    header = ["", "schemas"]
    for name, result in section.engines.items():
        header += [f"{name} {result.version} {COLUMNS[0]}", *COLUMNS[1:]]
    groups = dict.fromkeys(group for result in results for group in result.groups)
    rows = [_row(group, [result.groups[group] for result in results]) for group in groups]
    rows.append(_row("total", [result.total for result in results]))
    return table(header, rows)


def _row(name: str, counts: Sequence[Counts]) -> list[str]:
    cells = (c for each in counts for c in (each.enforced, each.matched, each.refused, each.wrong))
    return [name, f"{counts[0].schemas}", *(f"{cell}" for cell in cells)]


def _times(found: CompileTimes) -> str:
    shares = f"p50 {1e3 * found.median:.1f} ms, p99 {1e3 * found.p99:.1f}, most"
    return f"{found.sum:.1f} s of CPU, {shares} {1e3 * found.most:.0f}"


def _notes(section: Section) -> Iterable[str]:
    """Yield the sums of each engine, why it did not accept schemas, and what plait is wrong on."""
    for name, result in section.engines.items():
        total = result.total
        yield (
            f"{name}: {total.enforced} of {total.schemas} schemas enforced "
            f"({total.enforced / max(total.schemas, 1):.1%}), {total.right} of them with the right "
            f"verdict on every instance; {total.failed} schemas failed. Of valid instances "
            f"{total.matched} matched ({total.matched_as_given} with their keys as given), "
            f"{total.refused} refused; {total.wrong} of {total.invalid} invalid ones accepted. "
            f"Compiling: {_times(result.compile)}; {len(result.slow)} schemas over {SLOW_S:g} s."
        )
        reasons = list(result.reasons.items())[:MOST_REASONS]
        if reasons:
            yield "\n".join(f"- {len(names)} x {reason}" for reason, names in reasons)
    for own in section.own:
        yield from (f"WRONG: {instance}" for instance in own.wrong_instances)
