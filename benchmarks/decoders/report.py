"""The tables of `python -m benchmarks.decoders`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.decoders.presets import AUTOREGRESSIVE, CLAIMS, ONE_TOKEN
from benchmarks.decoders.serving import Rate
from benchmarks.decoders.statistics import Interval
from benchmarks.decoders.summary import LOSS, Line, Reach, claimed
from benchmarks.machine import Machine
from benchmarks.markdown import percent, table

if TYPE_CHECKING:  # it needs the extra bench
    from benchmarks.decoders.objects import Extraction

TEMPLATE_NAMES = ("template 1", "template 2", "held-out template")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run has found, and where."""

    date: str
    command: str
    machine: Machine
    engine: Mapping[str, Any]
    models: Mapping[str, str]  # weights: served name and fingerprint
    sample: Mapping[str, Any]
    lines: Sequence[Line]
    reaches: Sequence[Reach]
    learnt: Sequence[str]  # tasks that one token per step gets right often enough
    lossless: Sequence[str]  # the best such settings: in tokens a second, and a forward pass
    fast: Sequence[str]
    serving: Sequence[Rate] = field(default_factory=list)
    objects: Sequence[Extraction] = field(default_factory=list)
    unconstrained: Sequence[str] = field(default_factory=list)  # why a setting took no schema


def markdown(report: Report) -> str:
    """Return the whole report."""
    machine = report.machine
    models = ", ".join(f"{name}: {served}" for name, served in report.models.items())
    head = (
        f"{report.date}; {machine.cpu}, {machine.cores} cores, {machine.vector}, load "
        f"{machine.load} at the start; torch {machine.torch}; plait {machine.plait}\n\n"
        f"`{report.command}`\n\n{models}. {report.sample['cases']} held-out cases of each task, "
        f"{report.sample['streams']} answers at once. Intervals are 95 %: Wilson's for shares, a "
        "paired bootstrap for differences. Tokens count an answer's end too."
    )
    parts = ["# Decoders of a diffusion model", head, *_comparison(report)]
    if report.serving:
        parts += ["## Clients at once", serving_table(report.serving)]
    if report.objects:
        parts += ["## JSON extraction", objects_table(report.objects)]
    if report.unconstrained:
        parts.append(_not_measured(report.unconstrained))
    return "\n\n".join(parts) + "\n"


def _comparison(report: Report) -> list[str]:
    chosen = dict.fromkeys([AUTOREGRESSIVE, ONE_TOKEN, *report.lossless, *report.fast])
    faults = [f"{line.name}: {line.fault}" for line in report.lines if line.fault]
    return [
        "## Settings",
        comparison_table(report.lines),
        *([_not_measured(faults)] if faults else []),
        "## Tokens per forward pass at an accuracy that has to be kept",
        f"Learnt are the tasks that `{ONE_TOKEN}` gets right nine times in ten: "
        f"{', '.join(report.learnt) or 'none'}. 0: the accuracy is never reached.",
        reach_table(report.reaches),
        "## What the methods' authors report, and what is measured here",
        "Of each method the setting that saves most forward passes over what it is held against "
        f"and gives up at most {LOSS:.0%} of the answers; if none does, the most accurate one.",
        claim_table(claimed(report.lines)),
        "## Tasks",
        task_table([line for name in chosen for line in report.lines if line.name == name]),
    ]


def _not_measured(faults: Sequence[str]) -> str:
    return "Not measured:\n\n" + "\n".join(f"- {fault}" for fault in faults)


def comparison_table(lines: Sequence[Line]) -> str:
    """Return one row per setting."""
    header = [
        "setting",
        "exact match, %",
        *TEMPLATE_NAMES,
        f"against {ONE_TOKEN}",
        "forwards",
        "tokens/forward",
        "tokens/s",
        "MFLOP/token",
    ]
    return table(header, (_comparison_row(line) for line in lines if line.total is not None))


def _comparison_row(line: Line) -> list[str]:
    total = line.total
    assert total is not None, "only measured settings have a row"
    templates = [line.by_template.get(i) for i in range(len(TEMPLATE_NAMES))]
    return [
        line.name,
        percent(total.accuracy),
        *(f"{100 * each.value:.1f}" if each else "-" for each in templates),
        points(line.difference) if line.difference else "-",
        f"{total.forwards:.1f}",
        f"{total.tokens_per_forward:.2f}",
        f"{total.tokens_per_second:.0f}",
        f"{total.flops_per_token / 1e6:.1f}",
    ]


def reach_table(reaches: Sequence[Reach]) -> str:
    """Return one row per sweep."""
    header = ["method", "PB90", "PB95", "PB90, learnt tasks", "PB95, learnt tasks"]
    return table(
        header,
        (
            [
                each.sweep,
                *(
                    f"{value:.2f}"
                    for value in (each.pb90, each.pb95, each.learnt_pb90, each.learnt_pb95)
                ),
            ]
            for each in reaches
        ),
    )


def claim_table(found: Mapping[str, Line]) -> str:
    """Return one row per method: the headline, and the best that was measured."""
    header = [
        "method",
        "reported",
        "here",
        "against",
        "times fewer forwards",
        "times fewer FLOP",
        "times the tokens/s",
        "accuracy",
    ]
    rows = []
    for method, line in found.items():
        assert line.gain is not None, "only settings with a gain are chosen"
        ratios = (line.gain.forwards, line.gain.flops, line.gain.rate)
        texts = [method, CLAIMS[method], line.name, str(line.setting["against"])]
        rows.append([*texts, *(f"{x:.2f}" for x in ratios), points(line.gain.accuracy)])
    return table(header, rows, texts=4)


def task_table(lines: Sequence[Line]) -> str:
    """Return one row per task: exact match and tokens per forward pass of some settings."""
    tasks = dict.fromkeys(task for line in lines for task in line.by_task)
    return table(
        ["task", *(line.name for line in lines)],
        ([task, *(_task_cell(line, task) for line in lines)] for task in tasks),
    )


def _task_cell(line: Line, task: str) -> str:
    score = line.by_task.get(task)
    return f"{percent(score.accuracy)} at {score.tokens_per_forward:.2f}" if score else "-"


def serving_table(rates: Sequence[Rate]) -> str:
    """Return one row per setting: tokens per second and latency at each number of streams."""
    streams = list(dict.fromkeys(rate.streams for rate in rates))
    names = list(dict.fromkeys(rate.setting for rate in rates))
    found = {(rate.setting, rate.streams): rate for rate in rates}
    header = ["setting", *(f"tokens/s, {n} at once" for n in streams), "forwards"]
    return table(
        header,
        (
            [
                name,
                *(_rate_cell(found[name, n]) for n in streams),
                "/".join(f"{found[name, n].forwards:.1f}" for n in streams),
            ]
            for name in names
        ),
    )


def _rate_cell(rate: Rate) -> str:
    return (
        f"{rate.tokens_per_second:.0f} ({rate.slowest:.0f}-{rate.fastest:.0f}), "
        f"{rate.latency_ms:.0f} ms"
    )


def objects_table(found: Sequence[Extraction]) -> str:
    """Return one row per setting, with and without its schema."""
    header = ["setting", "schema given", "valid, %", "exact match, %", "forwards", "tokens/forward"]
    return table(
        header,
        (
            [
                each.setting,
                "yes" if each.constrained else "no",
                percent(each.valid),
                percent(each.exact),
                f"{each.forwards:.1f}",
                f"{each.tokens_per_forward:.2f}",
            ]
            for each in found
        ),
    )


def points(difference: Interval) -> str:
    """Write a difference of shares with its interval, in percentage points."""
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
