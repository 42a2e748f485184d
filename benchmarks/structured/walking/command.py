"""Runs `python -m benchmarks.structured walk`: each engine in a process of its own, in turns."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.machine import Machine, this_machine
from benchmarks.markdown import table
from benchmarks.maskbench import cases
from benchmarks.structured.engines import ENGINES
from benchmarks.structured.options import WalkOptions
from benchmarks.structured.walking.measure import WalkTimes, walk_cases
from benchmarks.structured.walking.walkers import WALKERS
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer

HEADER = ["", "schemas", "instances", "compile, s", "p50, ms", "p99", "max"]
HEADER += ["mask, p50, us", "p99", "p99.9", "max", "accept, p50", "p99"]


def walk_engine(name: str, corpus: Path, model: str, every: int, deadline_s: int) -> WalkTimes:
    """Return the times of one engine over every so manieth schema of a corpus."""
    tokenizer = load_tokenizer(resolve(model))
    chosen = (case for i, case in enumerate(cases(corpus)) if i % every == 0)
    times = walk_cases(chosen, WALKERS[name](model, tokenizer), tokenizer.encode, deadline_s)
    times.version = ENGINES[name].version
    return times


def run_walk(options: WalkOptions) -> int:
    """Walk the corpus with every engine and print the table; return 1 where one has failed."""
    if not options.corpus.exists():
        print(f"skipped: {options.corpus.name} is not on this machine")
        return 0
    found: dict[str, WalkTimes] = {}
    left_out = [f"{name}: it is not installed" for name in options.engines if not _version(name)]
    for name in filter(_version, options.engines):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            given = (name, options.corpus, options.model, options.every, int(options.deadline))
            try:
                found[name] = pool.submit(walk_engine, *given).result()
            except BrokenProcessPool:
                left_out.append(f"{name}: its process has died")
    text = markdown(found, left_out, this_machine())
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    return int(len(found) < len([*filter(_version, options.engines)]))


def _version(name: str) -> str:
    return ENGINES[name].version


def markdown(found: Mapping[str, WalkTimes], left_out: Sequence[str], machine: Machine) -> str:
    """Return the report."""
    command = f"python -m benchmarks.structured {shlex.join(sys.argv[1:])}"
    head = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M}; {machine.cpu}, plait {machine.plait}, `{command}`\n\n"
        "schemas: accepted of all; instances: walked to the end, of the valid ones of accepted "
        "schemas, as JSON with a blank after commas and colons and its keys in the schema's order. "
        "Compiling: CPU time, its sum over all schemas, refused ones too. accept: of plait with "
        "the number of tokens that complete the text."
    )
    parts = [
        "# Masks, token by token",
        head,
        table(HEADER, [_row(*each) for each in found.items()]),
        *_common(found),
    ]
    return "\n\n".join([*parts, *(f"Left out: {reason}" for reason in left_out)])


def _common(found: Mapping[str, WalkTimes]) -> Iterator[str]:
    """Yield what compiling takes of the schemas that all engines serve, if there are several."""
    if len(found) < 2:
        return
    common = np.all([times.serves for times in found.values()], axis=0)
    header = ["", "compile, s", "p50, ms", "p99", "max"]
    rows = []
    for name, times in found.items():
        own = [seconds for seconds, is_one in zip(times.compile, common, strict=True) if is_one]
        cells = [f"{1e3 * each:.2f}" for each in _quantiles(own, (0.5, 0.99, 1))]
        rows.append([f"{name} {times.version}", f"{sum(own):.2f}", *cells])
    yield f"Of the {common.sum()} schemas that all of them serve:"
    yield table(header, rows)


def _row(name: str, times: WalkTimes) -> list[str]:
    total = times.accepted + times.refused + times.failed
    instances = times.ended + times.broken
    cells = [f"{name} {times.version}", f"{times.accepted} of {total}"]
    cells += [f"{times.ended} of {instances}", f"{sum(times.compile):.2f}"]
    cells += [f"{1e3 * each:.2f}" for each in _quantiles(times.compile, (0.5, 0.99, 1))]
    cells += [f"{1e6 * each:,.1f}" for each in _quantiles(times.mask, (0.5, 0.99, 0.999, 1))]
    return cells + [f"{1e6 * each:,.1f}" for each in _quantiles(times.accept, (0.5, 0.99))]


def _quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    return [float(each) for each in np.quantile(values or [0.0], shares)]
