"""Measures what speculation gains: drafters of one plait server in turns, and peers beside it.

    python -m benchmarks.speculation [--only plait,vllm-ngram] [--tasks copy,chat1] [--reps 5]

The settings of plait answer the same prompts with the same seeds on the same server, one after the
other within each repetition, and a repetition begins with another one of them, so that a machine
that changes its speed changes it for all. Each has a namespace of its own, which it keeps: `suffix`
goes by what the earlier repetitions have answered, as it does for a client who asks many questions
of a kind. The gate: the texts of every setting but the lossy ones are those without drafts, to the
letter. Drafters that are models are measured on a server of their own, plait-second, whose second
model is the first once more: always right, and as slow. What has been measured is saved under
results/ as soon as a server is through.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.client import Answer, ServerFault, connect
from benchmarks.machine import ROOT, this_machine
from benchmarks.peers import names_among
from benchmarks.rows import Bench, RedGate, check
from benchmarks.servers import SERVERS, NotInstalled, NotReady, Venvs, running
from benchmarks.speculation_tasks import TASKS, Task
from plait.decoders.speculative.config import is_lossy, resolve_drafters

PLAIN = "plain"
SETTINGS: Mapping[str, Any] = {
    PLAIN: "off",
    "auto": "auto",
    "n-gram": "n-gram",
    "suffix": "suffix",
    "aded": "aded",
    "jacobi": "jacobi",
    "n-gram + jacobi": ["n-gram", "jacobi"],
    "ppd": "ppd",
    "eagle": "eagle",
    "chimera": "chimera",
    "forced": "forced",
    "typical": ["ppd", "typical"],
    "lud": "lud",
    "draft-model": "draft-model",
    "pearl": "pearl",
    "superposed-tree": "superposed-tree",
}
PLAIT = ("plait", "plait-second")
PREDICTION = "prediction"  # auto, with what the answer is expected to be
WRONG = "wrong prediction"  # auto, with a text that has nothing to do with it


@dataclass(slots=True)
class Cell:
    """One setting on one task."""

    rates: list[float] = field(default_factory=list)  # tokens a second, one a repetition
    ratios: list[float] = field(default_factory=list)  # to the plain run of the same repetition
    tokens: int = 0
    forwards: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    def note(self, rate: float, answers: Sequence[Answer]) -> None:
        """Add what one repetition gave."""
        self.rates.append(rate)
        for answer in answers:
            self.tokens += answer.tokens
            self.forwards += answer.decoding.get("forwards", 0)
            self.drafted.update(answer.decoding.get("drafted", {}))
            self.accepted.update(answer.decoding.get("accepted", {}))


Cells = dict[str, dict[str, Cell]]  # task -> setting -> cell


def settings_of(task: Task, chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the request fields of each setting that makes sense for a task, plain first."""
    found: dict[str, dict[str, Any]] = {}
    for name in (PLAIN, *(name for name in chosen if name != PLAIN)):
        if task.only and name not in task.only:
            continue
        if name in (PREDICTION, WRONG):
            text = task.prediction if name == PREDICTION else task.wrong
            if text:
                content = {"type": "content", "content": text}
                found[name] = {"prediction": content, "decoding": {"trace": True}}
        elif name != "forced" or task.is_constrained:
            found[name] = {"decoding": {"drafter": SETTINGS[name], "trace": True}}
    return found


def wants_draft_model(name: str) -> bool:
    """Tell whether a setting is measured on the server that has one."""
    choices = resolve_drafters({"drafter": SETTINGS.get(name, "off")})
    return any("draft_model" in choice.method.needs for choice in choices)


async def measure_plait(bench: Bench, tasks: Sequence[str], chosen: Sequence[str]) -> Cells:
    """Measure every setting on every task, in turns.

    Raises:
        RedGate: a draft has changed a text.
    """
    found: Cells = {}
    for key in tasks:
        task = TASKS[key]
        fields = settings_of(task, chosen)
        cells = found[key] = {name: Cell() for name in fields}
        for rep in range(-1, bench.reps):  # the first one warms up
            found_now = await _turn(bench, task, fields, rep)
            for name, (rate, answers) in found_now.items() if rep >= 0 else ():
                cells[name].note(rate, answers)
        for cell in cells.values():
            pairs = zip(cell.rates, cells[PLAIN].rates, strict=True)
            cell.ratios = [rate / plain for rate, plain in pairs]
        _say(f"  {key}: " + ", ".join(f"{n} {_median(c.ratios):.2f}x" for n, c in cells.items()))
    return found


async def _turn(
    bench: Bench, task: Task, fields: Mapping[str, dict[str, Any]], rep: int
) -> dict[str, tuple[float, list[Answer]]]:
    """Run every setting once on the same requests."""
    found: dict[str, tuple[float, list[Answer]]] = {}
    calls, names = task.calls(bench, rep), [*fields]
    first = rep % len(names)
    for name in names[first:] + names[:first]:
        salt = {"cache_salt": f"{task.title}: {name}"}  # or a later setting finds the prompt cached
        found[name] = await task.run(bench, calls, fields[name] | salt)
    for name, (_, answers) in found.items():
        if is_lossy(fields[name]["decoding"]):
            continue
        if [a.text for a in answers] != [a.text for a in found[PLAIN][1]]:
            raise RedGate(f"{task.title}: with {name} the text is another one than without")
    return found


async def measure_peer(bench: Bench, tasks: Sequence[str], label: str) -> Cells:
    """Measure a peer, which has one setting, on every task."""
    found: Cells = {}
    for key in tasks:
        cell = Cell()
        for rep in range(-1, bench.reps):
            rate, answers = await TASKS[key].run(bench, TASKS[key].calls(bench, rep), {})
            if rep >= 0:
                cell.note(rate, answers)
        found[key] = {label: cell}
        _say(f"  {key}: {_median(cell.rates):.3g} tok/s")
    return found


def table(cells: Cells) -> str:
    """Return the findings as a Markdown table."""
    lines = [
        "| task | setting | tok/s | over plain | tokens/forward | accepted of drafted | sources |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, settings in cells.items():
        lines += [_line(TASKS[key].title, name, cell) for name, cell in settings.items()]
    return "\n".join(lines)


def _line(title: str, name: str, cell: Cell) -> str:
    columns = [title, name, f"{_median(cell.rates):.3g}", "-", "-", "-", ""]
    if cell.ratios:
        span = f"{min(cell.ratios):.2f}-{max(cell.ratios):.2f}"
        columns[3] = f"{_median(cell.ratios):.2f} ({span})"
    if cell.forwards:
        columns[4] = f"{cell.tokens / cell.forwards:.2f}"
        columns[5] = f"{cell.accepted.total()} of {cell.drafted.total()}"
        columns[6] = _shares(cell)
    return f"| {' | '.join(columns)} |"


def _shares(cell: Cell) -> str:
    """Return which share of the tokens each source has given."""
    return ", ".join(f"{s} {n / cell.tokens:.0%}" for s, n in sorted(cell.accepted.items()) if n)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _measure(url: str, model: str, label: str, args: argparse.Namespace) -> Cells:
    async with connect(url) as client:
        bench = Bench(client, model, args.reps)
        await check(bench)
        if label not in PLAIT:
            return await measure_peer(bench, args.tasks, label)
        is_second = label == "plait-second"
        wanted = [name for name in args.settings if wants_draft_model(name) is is_second]
        found = await measure_plait(bench, args.tasks, await _known(bench, wanted))
        if label != "plait":
            found = {key: _without_plain(cells) for key, cells in found.items()}
        return found


def _without_plain(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the other cells: there is one plain row, that of the server as it is."""
    return {name: cell for name, cell in cells.items() if name != PLAIN}


async def _known(bench: Bench, settings: Sequence[str]) -> list[str]:
    """Return the settings whose drafters the server has."""
    found = []
    for name in settings:
        if name in SETTINGS:
            try:
                await bench.ask(bench.prompt("Hi."), 1, decoding={"drafter": SETTINGS[name]})
            except ServerFault as fault:
                _say(f"  {name}: {fault}")
                continue
        found.append(name)
    return found


def _arguments() -> argparse.Namespace:
    labels = [*PLAIT, "vllm", "vllm-ngram", "llama-q4_1", "llama-q4_0"]
    settings = [*SETTINGS, PREDICTION, WRONG]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", type=names_among(labels), default=labels, metavar="A,B")
    parser.add_argument("--tasks", type=names_among([*TASKS]), default=[*TASKS], metavar="A,B")
    parser.add_argument("--settings", type=names_among(settings), default=settings, metavar="A,B")
    parser.add_argument("--reps", type=int, default=5, help="repetitions")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm", help="its venv")
    parser.add_argument("--llama", type=Path, default=ROOT / ".venv-llama", help="its venv")
    parser.add_argument("--files", type=Path, help="where peers' model files and logs are kept")
    return parser.parse_args()


def _save(cells: Cells, faults: Mapping[str, str], args: argparse.Namespace) -> None:
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.speculation --only {','.join(args.only)} --tasks "
        f"{','.join(args.tasks)} --reps {args.reps}",
        "machine": asdict(this_machine()),
        "faults": dict(faults),
        "cells": cells,
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=1)
    (folder / "speculation.json").write_bytes(text + b"\n")
    (folder / "speculation.md").write_text(table(cells) + "\n")


def main() -> int:
    """Measure all, print the table; 1 when plait itself failed."""
    args = _arguments()
    files = args.files or Path(tempfile.mkdtemp(prefix="plait-bench-"))
    places = Venvs(args.vllm.absolute(), args.llama.absolute(), files, args.model)
    cells: Cells = {key: {} for key in args.tasks}
    faults: dict[str, str] = {}
    for label in args.only:
        _say(f"{label}: starting")
        try:
            with (
                running(SERVERS[label](places), files / f"{label}.log") as server,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                found = runner.run(_measure(server.base_url, server.model, label, args))
        except (NotInstalled, NotReady, RedGate, ServerFault) as error:
            faults[label] = str(error)
            _say(f"  {error}")
        else:
            for key, settings in found.items():
                cells[key] |= settings
        _save(cells, faults, args)
    print(table(cells))
    return int(any(label in faults for label in PLAIT))


if __name__ == "__main__":
    sys.exit(main())
