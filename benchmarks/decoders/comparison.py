"""`python -m benchmarks.decoders`: every setting on every task, the gate, the tables, the plot."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.decoders.cells import Cell, Sample, Store, key_of, measure, requests_of
from benchmarks.decoders.options import DecodersOptions
from benchmarks.decoders.presets import (
    AUTOREGRESSIVE,
    ONE_TOKEN,
    BadSettings,
    Setting,
    Weights,
    choose_settings,
)
from benchmarks.decoders.report import Report, markdown
from benchmarks.decoders.running import LoadedModel, RequestFailed, run_requests, serve
from benchmarks.decoders.serving import serving
from benchmarks.decoders.summary import (
    best_fast,
    best_lossless,
    learnt_tasks,
    reaches,
    summarise,
    unequal,
)
from benchmarks.machine import code, this_machine
from benchmarks.tasks.catalog import TASKS
from plait.decoders.contract.registry import MethodError
from plait.server.errors import ServerError
from plait.server.models.catalog import BadModel

EXIT_FAILED, EXIT_BAD_OPTIONS = 1, 2
WARM_UP_S = 3.0  # before the first measured answer; meanwhile an engine prepares its grammars
# Packages of the extra `bench`, by the part of the report that needs them.
PACKAGES = {"plot": "matplotlib", "json": "jsonschema_rs"}
TITLE = "Exact match against tokens per forward pass: {}, {} cases a setting"
REFERENCES = (AUTOREGRESSIVE, ONE_TOKEN)
FAULTS = (RequestFailed, ServerError, MethodError, BadModel)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The measurements of a run."""

    settings: Sequence[Setting]
    cells: dict[str, list[Cell]] = field(default_factory=dict)  # of a setting: one per task
    faults: dict[str, str] = field(default_factory=dict)  # why a setting has no cells


class Bench:
    """One run: its options, and its models, which are loaded on first use."""

    def __init__(self, options: DecodersOptions) -> None:
        self.options = options
        self.machine = this_machine()
        self._code = code()
        self.tasks = _tasks(options.tasks)
        self.sample = Sample(options.seed, options.samples, tuple(options.templates))
        self._names: dict[Weights, str] = {"base": options.model, "distilled": options.distilled}
        self._served: dict[Weights, LoadedModel] = {}

    def served(self, weights: Weights) -> LoadedModel:
        """Return a model, warmed up.

        Raises:
            BadModel: it can't be loaded.
        """
        if weights not in self._served:
            _say(f"loading {self._names[weights]}")
            made = serve(self.options.engine(self._names[weights]))
            self._warm_up(made)
            self._served[weights] = made
        return self._served[weights]

    def _warm_up(self, served: LoadedModel) -> None:
        cases = self.sample.of(self.tasks[0])
        plain = Setting(name="", decoding={"unmasker": "off"})
        begun = time.perf_counter()
        while time.perf_counter() - begun < WARM_UP_S:
            run_requests(served, requests_of(served, plain, cases), self.options.streams)

    def models(self) -> dict[str, str]:
        """Return the names and fingerprints of the loaded models, by weights."""
        return {
            weights: f"{served.info.model} in {served.info.weights}, {served.info.fingerprint}"
            for weights, served in self._served.items()
        }

    def compare(self, settings: Sequence[Setting], store: Store) -> Comparison:
        """Measure every setting on every task, except for cells that the store holds."""
        found = Comparison(settings)
        for setting in settings:
            try:
                served = self.served(setting.weights)
                cells = [self._cell(served, setting, task, store) for task in self.tasks]
            except FAULTS as error:
                found.faults[setting.name] = str(error)
                _say(f"{setting.name}: {error}")
                continue
            found.cells[setting.name] = cells
            _say(f"{setting.name}: {sum(cell.seconds for cell in cells):.1f} s")
        return found

    def _cell(self, served: LoadedModel, setting: Setting, task: str, store: Store) -> Cell:
        conditions = {
            "machine": [self.machine.cpu, self.machine.cores, self.machine.torch],
            "code": self._code,
            "weights": served.info.fingerprint,
            "sample": asdict(self.sample),
            "streams": self.options.streams,
            "engine": asdict(self.options.engine("")),
        }
        key = key_of(setting, task, conditions)
        found = store.get(key)
        if found is None:
            cases = self.sample.of(task)
            found = measure(served, setting, cases, streams=self.options.streams, key=key)
            store.add(found)
        return found


def run_bench(options: DecodersOptions) -> int:
    """Run the comparison; return the process's exit code.

    1: a reference could not be measured, or a lossless setting gave different answers; nothing is
    reported then. 2: wrong options or missing packages, found before anything is measured.
    """
    if missing := missing_packages(options.parts):
        names, are = " and ".join(missing), "is" if len(missing) == 1 else "are"
        text = f"{names} {are} not installed: pip install 'plait[bench]'"
        return _fail(text, EXIT_BAD_OPTIONS)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        settings = choose_settings(options.methods)
        bench = Bench(options)
        bench.served("base")
    except (BadSettings, BadModel, OSError) as error:
        return _fail(str(error), EXIT_BAD_OPTIONS)
    found = bench.compare(settings, Store(options.output / "decoders.cells.jsonl"))
    faults = [f"{name}: {found.faults[name]}" for name in REFERENCES if name in found.faults]
    faults += unequal(settings, found.cells)
    if faults:
        return _fail("\nplait: ".join(faults))
    _save(options.output, make_report(bench, found))
    return 0


def missing_packages(parts: Sequence[str]) -> list[str]:
    """Return the packages of the extra `bench` that these parts need and that aren't installed."""
    needed = (PACKAGES[part] for part in ("plot", *parts) if part in PACKAGES)
    return [package for package in needed if find_spec(package) is None]


def make_report(bench: Bench, found: Comparison) -> Report:
    """Return the report; measure what it needs beyond the comparison."""
    options = bench.options
    lines = summarise(found.settings, found.cells, found.faults)
    report = Report(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        command=command(options),
        machine=bench.machine,
        engine=asdict(options.engine(Path(options.model).name)),
        models=bench.models(),
        sample={**asdict(bench.sample), "streams": options.streams, "tasks": bench.tasks},
        lines=lines,
        reaches=reaches(lines),
        learnt=sorted(learnt_tasks(found.cells[ONE_TOKEN])),
        lossless=best_lossless(lines),
        fast=best_fast(lines),
    )
    names = [*REFERENCES, *report.lossless, *report.fast]
    chosen = [s for s in found.settings if s.name in names]
    if "serving" in options.parts:
        _say("serving")
        report = replace(report, serving=serving(bench.served("base"), chosen, bench.tasks))
    if "json" in options.parts:
        from benchmarks.decoders.objects import extraction  # noqa: PLC0415, of the extra bench

        _say("json")
        made, faults = extraction(bench.served("base"), chosen, bench.sample, options.streams)
        report = replace(report, objects=made, unconstrained=faults)
    return report


def _save(folder: Path, report: Report) -> None:
    """Write decoders.json, .md, .png and .svg, and show the tables."""
    from benchmarks.decoders.plot import save_plot  # noqa: PLC0415, of the extra bench

    text = markdown(report)
    (folder / "decoders.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    (folder / "decoders.md").write_text(text)
    cases = max(line.total.cases for line in report.lines if line.total is not None)
    save_plot(report.lines, folder / "decoders", TITLE.format(report.models["base"], cases))
    sys.stdout.write(text)


def command(options: DecodersOptions) -> str:
    """Return the command line of these options, with file names instead of paths."""
    words = ["python", "-m", "benchmarks.decoders", Path(options.model).name]
    for name, option in DecodersOptions.model_fields.items():
        value = getattr(options, name)
        if name in ("model", "output") or value == option.default:
            continue
        given = value if isinstance(value, list) else [value]
        texts = [Path(str(each)).name for each in given]
        words += [f"--{name.replace('_', '-')}", ",".join(texts)]
    return shlex.join(words)


def _tasks(names: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if name not in TASKS]:
        raise BadSettings(f"no task {', '.join(unknown)}; there are: {', '.join(TASKS)}")
    return list(names or TASKS)


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    _say(f"plait: {message}")
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
