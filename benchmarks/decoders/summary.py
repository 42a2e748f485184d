"""Summaries of cells: one line per setting, compared with one token per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from benchmarks.decoders.cells import Cell
from benchmarks.decoders.presets import AUTOREGRESSIVE, CLAIMS, ONE_TOKEN, Setting
from benchmarks.decoders.statistics import Interval, Point, paired_difference, reach, wilson
from benchmarks.tasks.case import TEMPLATES

LEARNT = 0.9  # a task counts as learnt if one token per step is right so often
HOSTS = frozenset({"static", "threshold"})  # selectors that other methods are combined with
LOSS = 0.02  # of accuracy that a recommended setting may lose


@dataclass(frozen=True, slots=True)
class Score:
    """The totals of one setting over some cases."""

    accuracy: Interval
    cases: int
    forwards: float  # per answer
    tokens_per_forward: float
    tokens_per_second: float  # on the wall clock, over all streams
    flops_per_token: float


@dataclass(frozen=True, slots=True)
class Speedup:
    """How much better a setting is than another, on the same cases."""

    forwards: float  # times fewer
    flops: float  # times fewer per token
    rate: float  # times more tokens a second
    accuracy: Interval  # difference


@dataclass(frozen=True, slots=True)
class Line:
    """The summary of one setting."""

    setting: Mapping[str, Any]
    total: Score | None = None  # None: nothing was measured
    learnt: Score | None = None  # the tasks that the model has learnt
    by_task: Mapping[str, Score] = field(default_factory=dict)
    by_template: Mapping[int, Interval] = field(default_factory=dict)
    difference: Interval | None = None  # of accuracy, to one token per step on the same cases
    gain: Speedup | None = None  # over the setting that it is compared with
    fault: str = ""  # why nothing was measured

    @property
    def name(self) -> str:
        """The setting's name."""
        return str(self.setting["name"])


@dataclass(frozen=True, slots=True)
class Reach:
    """The speed of one method at a required accuracy."""

    sweep: str
    pb90: float  # tokens per forward pass over all tasks; 0: never so accurate
    pb95: float
    learnt_pb90: float  # over the tasks that the model has learnt
    learnt_pb95: float


Cells = Mapping[str, Sequence[Cell]]  # of each setting, one per task, in one order of tasks


def score(cells: Sequence[Cell]) -> Score:
    """Put cells together; tokens are divided by forwards and seconds in sums, not one by one."""
    right = list(chain.from_iterable(cell.right for cell in cells))
    tokens = sum(sum(cell.tokens) for cell in cells)
    forwards = sum(sum(cell.forwards) for cell in cells)
    return Score(
        accuracy=wilson(sum(right), len(right)),
        cases=len(right),
        forwards=forwards / len(right),
        tokens_per_forward=tokens / forwards,
        tokens_per_second=tokens / sum(cell.seconds for cell in cells),
        flops_per_token=sum(cell.flops for cell in cells) / tokens,
    )


def learnt_tasks(reference: Sequence[Cell]) -> frozenset[str]:
    """Return the tasks that one token per step gets right often enough to tell decoders apart."""
    return frozenset(c.task for c in reference if sum(c.right) >= LEARNT * len(c.right))


def summarise(settings: Sequence[Setting], cells: Cells, faults: Mapping[str, str]) -> list[Line]:
    """Return one line per setting."""
    learnt = learnt_tasks(cells[ONE_TOKEN])
    return [
        _line(setting, cells, learnt)
        if setting.name in cells
        else Line(setting.model_dump(), fault=faults[setting.name])
        for setting in settings
    ]


def _line(setting: Setting, cells: Cells, learnt: frozenset[str]) -> Line:
    own = cells[setting.name]
    known = [cell for cell in own if cell.task in learnt]
    return Line(
        setting=setting.model_dump(),
        total=score(own),
        learnt=score(known) if known else None,
        by_task={cell.task: score([cell]) for cell in own},
        by_template=_templates(own),
        difference=_difference(own, cells[ONE_TOKEN]),
        gain=gain(own, cells[setting.against]) if setting.against in cells else None,
    )


def gain(cells: Sequence[Cell], reference: Sequence[Cell]) -> Speedup:
    """Compare two settings on the same cases."""
    have, other = score(cells), score(reference)
    return Speedup(
        forwards=other.forwards / have.forwards,
        flops=other.flops_per_token / have.flops_per_token,
        rate=have.tokens_per_second / other.tokens_per_second,
        accuracy=_difference(cells, reference),
    )


def _difference(cells: Sequence[Cell], reference: Sequence[Cell]) -> Interval:
    return paired_difference(
        [right for cell in cells for right in cell.right],
        [right for cell in reference for right in cell.right],
        [cell.task for cell in cells for _ in cell.right],
    )


def _templates(cells: Sequence[Cell]) -> dict[int, Interval]:
    found: dict[int, list[bool]] = {i: [] for i in range(TEMPLATES)}
    for cell in cells:
        for template, right in zip(cell.templates, cell.right, strict=True):
            found[template].append(right)
    return {i: wilson(sum(right), len(right)) for i, right in found.items() if right}


def reaches(lines: Sequence[Line]) -> list[Reach]:
    """Return PB90 and PB95 of every sweep, and of the settings that stand alone."""
    sweeps: dict[str, list[Line]] = {}
    for line in lines:
        if line.total is not None:
            sweeps.setdefault(line.setting["sweep"] or line.name, []).append(line)
    return [
        Reach(
            name,
            *(reach(_points(members, "total"), x) for x in (0.9, 0.95)),
            *(reach(_points(members, "learnt"), x) for x in (0.9, 0.95)),
        )
        for name, members in sweeps.items()
    ]


def _points(lines: Sequence[Line], part: str) -> list[Point]:
    scores = [getattr(line, part) for line in lines]
    return [Point(s.tokens_per_forward, s.accuracy.value) for s in scores if s is not None]


def claimed(lines: Sequence[Line]) -> dict[str, Line]:
    """Return for each method with a claim its best setting.

    Best is most times fewer forward passes than what it is held against, among those that give up
    at most LOSS of accuracy; if all give up more, the most accurate one. Methods that are composed
    with others than their hosts have no part in it.
    """
    found: dict[str, Line] = {}
    for method in CLAIMS:
        members = [li for li in lines if li.gain and _methods(li) - (HOSTS - {method}) == {method}]
        kept = [li for li in members if li.gain and li.gain.accuracy.value >= -LOSS]
        if kept:
            found[method] = max(kept, key=lambda li: li.gain.forwards if li.gain else 0.0)
        elif members:
            found[method] = max(members, key=lambda li: li.gain.accuracy.value if li.gain else 0.0)
    return found


def _methods(line: Line) -> set[str]:
    asked = line.setting["decoding"].get("unmasker", [])
    listed = asked if isinstance(asked, list) else [asked]
    return {each if isinstance(each, str) else each["name"] for each in listed}


def unequal(settings: Sequence[Setting], cells: Cells) -> list[str]:
    """Return a sentence for each lossless setting whose answers differ.

    Law: a lossless setting gives the answers of the one it equals, token for token, in at most as
    many forward passes each.
    """
    faults = []
    for setting in settings:
        if setting.name not in cells or setting.equals not in cells:
            continue
        pairs = list(zip(cells[setting.name], cells[setting.equals], strict=True))
        differing = sum(_differing(have.answers, want.answers) for have, want in pairs)
        slower = sum(_greater(have.forwards, want.forwards) for have, want in pairs)
        if differing or slower:
            faults.append(
                f"{setting.name}: {differing} answers are not those of {setting.equals}, "
                f"{slower} took more forward passes"
            )
    return faults


def _differing(have: Sequence[list[int]], want: Sequence[list[int]]) -> int:
    return sum(one != other for one, other in zip(have, want, strict=True))


def _greater(have: Sequence[int], want: Sequence[int]) -> int:
    return sum(one > other for one, other in zip(have, want, strict=True))


def best_lossless(lines: Sequence[Line]) -> list[str]:
    """Name the best settings that must equal one token per step."""
    return _best([line for line in lines if line.setting["equals"].startswith(ONE_TOKEN)])


def best_fast(lines: Sequence[Line]) -> list[str]:
    """Name the best settings that give up at most LOSS of accuracy."""
    return _best([li for li in lines if li.difference and li.difference.value >= -LOSS])


def _best(lines: Sequence[Line]) -> list[str]:
    """Name the greedy settings of the base weights with most tokens a second and a forward pass.

    What counts depends on the load: one answer alone waits for forward passes, many for arithmetic.
    """
    totals = {
        line.name: line.total
        for line in lines
        if line.total is not None
        and line.setting["weights"] == "base"
        and line.setting["temperature"] == 0
        and line.name not in (AUTOREGRESSIVE, ONE_TOKEN)
    }
    if not totals:
        return []
    by_second = max(totals, key=lambda name: totals[name].tokens_per_second)
    by_forward = max(totals, key=lambda name: totals[name].tokens_per_forward)
    return list(dict.fromkeys([by_second, by_forward]))
