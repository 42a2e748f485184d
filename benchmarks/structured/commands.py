"""Runs the commands of `python -m benchmarks.structured`: what is read, measured and written."""

from __future__ import annotations

import asyncio
import datetime
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvloop
from pydantic_settings import get_subcommand

from benchmarks.client import ServerFault, connect
from benchmarks.machine import this_machine
from benchmarks.maskbench import SHARED, Case, cases, remotes
from benchmarks.rows import Bench
from benchmarks.servers import NotInstalled, NotReady, Venvs
from benchmarks.structured import canvases, http_report, suite_report
from benchmarks.structured.answers import Answers, Plan
from benchmarks.structured.canvases import CanvasReport
from benchmarks.structured.coverage import Attempt, coverage, speed
from benchmarks.structured.engines import ENGINES, OWN, STANDARD
from benchmarks.structured.http_report import HttpReport, ServerResult
from benchmarks.structured.isolation import IsolatedEngine
from benchmarks.structured.journal import Journal
from benchmarks.structured.measuring import Schema, draw_schemas, measure
from benchmarks.structured.options import (
    CanvasOptions,
    FaithfulOptions,
    HttpOptions,
    StructuredOptions,
    SuiteOptions,
    WalkOptions,
)
from benchmarks.structured.serving import Server, found, started
from benchmarks.structured.suite import (
    DIALECTS,
    EngineResult,
    JudgedCase,
    judge_case,
    summarise,
)
from benchmarks.structured.suite_report import Section, SuiteReport
from benchmarks.structured.walking.command import run_walk
from plait.decoders.constrained.schema.references.bundle import Library

SUITES = "json-schema-test-suite-*.tar.gz"
MODEL = "smollm2-135m-instruct"


def run(options: StructuredOptions) -> int:
    """Run the subcommand that was named; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that servers are stopped
    chosen = get_subcommand(options)
    if isinstance(chosen, SuiteOptions):
        return run_suite(chosen)
    if isinstance(chosen, CanvasOptions):
        return run_canvases(chosen)
    if isinstance(chosen, WalkOptions):
        return run_walk(chosen)
    if isinstance(chosen, FaithfulOptions):
        return run_faithful(chosen)
    assert isinstance(chosen, HttpOptions), "there are no other subcommands"
    return run_http(chosen)


def run_suite(options: SuiteOptions) -> int:
    """Judge the corpora with every engine; return 1 where plait accepts an invalid instance."""
    versions = {name: ENGINES[name].version for name in options.engines}
    left_out = [f"{name}: it is not installed" for name, found in versions.items() if not found]
    engines = {name: version for name, version in versions.items() if version}
    machine = this_machine()
    journal = Journal(options.journal, machine.plait)
    sections = []
    for corpus in _corpora(options):
        title = corpus.title
        if corpus.cases:
            found = _judge(corpus, engines, journal, options.deadline)
            sections.append(Section(title, found))
        else:
            left_out.append(f"{title}: no such tests")
    report = SuiteReport(_now(), _command(), machine, sections, left_out)
    _write(suite_report.markdown(report), report, options.output)
    return int(report.wrong > 0)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Schemas, the dialect of those that name none, and the documents that they may refer to."""

    title: str
    cases: list[Case]
    dialect: str = ""
    library: Library = field(default_factory=dict)


def _corpora(options: SuiteOptions) -> Iterator[Corpus]:
    """Yield each draft of the suite, and other corpora."""
    corpora = options.corpora or sorted(SHARED.glob(SUITES))
    for corpus in (path for path in corpora if path.name.endswith(".jsonl.gz")):
        yield Corpus(corpus.name, [*cases(corpus)])
    suites = [path for path in corpora if not path.name.endswith(".jsonl.gz")]
    for draft in options.drafts if suites or not options.corpora else ():
        rows = [case for path in suites for case in cases(path, draft)]
        library = {uri: found for path in suites for uri, found in remotes(path).items()}
        title = f"JSON-Schema-Test-Suite, {draft}, required"
        yield Corpus(title, rows, DIALECTS[draft], library)


def _judge(
    corpus: Corpus, engines: dict[str, str], journal: Journal, deadline_s: float
) -> dict[str, EngineResult]:
    results = {}
    for name, version in engines.items():
        if name == STANDARD and not corpus.dialect:  # whose formats are meant to be asserted
            continue
        with IsolatedEngine(ENGINES[name].make, deadline_s) as engine:
            library = corpus.library if name in OWN else {}
            judge = partial(judge_case, judge=engine.judge, dialect=corpus.dialect, library=library)
            judged = [*_each(corpus, name, judge, journal)]
        results[name] = summarise(version, judged)
    return results


def _each(
    corpus: Corpus, engine: str, judge: Callable[[Case], JudgedCase], journal: Journal
) -> Iterator[JudgedCase]:
    """Yield what an engine makes of each schema, from the journal where it says that."""
    found = journal.found(corpus.title, engine)
    for number, case in enumerate(corpus.cases):
        if number not in found:
            found[number] = judge(case)
            journal.add(corpus.title, engine, number, found[number])
        yield found[number]


def run_canvases(options: CanvasOptions) -> int:
    """Measure the methods of a diffusion model; return 1 where an answer is not of its form."""
    served = canvases.load()
    answers = canvases.answer_rows(served, options.cases, options.rounds)
    holes = canvases.hole_rows(served, options.cases)
    report = CanvasReport(_now(), _command(), this_machine(), answers, holes)
    _write(canvases.markdown(report), report, options.output)
    under_form = [row.valid for row in answers] + [row.valid for row in holes if row.constrained]
    return int(any(share.value < 1 for share in under_form))


def run_http(options: HttpOptions) -> int:
    """Measure the servers one after the other; return 1 where one could not be measured."""
    if not options.corpus.exists():
        print(f"skipped: {options.corpus.name} is not on this machine")
        return 0
    schemas, passed_over = draw_schemas(cases(options.corpus), options.schemas, options.seed)
    left_out = [f"{passed_over.count(why)} schemas: {why}" for why in dict.fromkeys(passed_over)]
    servers: dict[str, ServerResult] = {}
    faults: list[str] = []
    for name, server in _servers(options):
        try:
            with server as reached:
                servers[reached.name] = _measure(reached, schemas, _plan(options), options.journal)
        except (NotInstalled, NotReady, ServerFault, httpx.HTTPError, TimeoutError) as fault:
            faults.append(f"{name}: {fault!r}")
        # Written after each server: one that hangs must not cost what the others took hours for.
        report = HttpReport(_now(), _command(), this_machine(), servers, [*left_out, *faults])
        _write(http_report.markdown(report), report, options.output)
    return int(bool(faults))


def run_faithful(options: FaithfulOptions) -> int:
    """Compare the searches with the law of each task; return 0."""
    from benchmarks.structured import faithful  # noqa: PLC0415 - loads torch and the model

    begun = time.perf_counter()
    lab = faithful.open_lab(options.model)
    tasks = [
        faithful.measure_task(lab, task, options.samples, options.seed) for task in faithful.TASKS
    ]
    load = faithful.measure_load(lab)
    report = faithful.FaithfulReport(
        _now(),
        _command(),
        this_machine(),
        options.samples,
        lab.vocab_size,
        tasks,
        load,
        time.perf_counter() - begun,
    )
    _write(faithful.markdown(report), report, options.output)
    return 0


def _servers(options: HttpOptions) -> Iterator[tuple[str, AbstractContextManager[Server]]]:
    """Yield the servers by name; each is started when its context is entered."""
    if options.url is not None:
        key = options.api_key.get_secret_value() if options.api_key else ""
        yield options.url, found(options.url, options.model, key)
        return
    files = options.files or Path(tempfile.mkdtemp(prefix="plait-structured-"))
    files.mkdir(parents=True, exist_ok=True)
    places = Venvs.below(options.peers.absolute(), files.absolute(), options.model or MODEL)
    for name in options.servers:
        yield name, started(name, places)


def _plan(options: HttpOptions) -> Plan:
    return Plan(
        outputs=options.outputs,
        streams=options.streams,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        timeout_s=options.timeout,
        is_alone=options.alone,
    )


def _measure(
    server: Server, schemas: list[Schema], plan: Plan, journal: Path | None
) -> ServerResult:
    answers = Answers(journal, f"{server.name} {server.version} {server.model}", plan)

    async def ask_all() -> list[Attempt]:
        async with connect(server.base_url) as client:
            client.headers.update(server.headers)
            return await measure(Bench(client, server.model), schemas, plan, answers)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        attempts = runner.run(ask_all())
    return ServerResult(server.version, server.model, coverage(attempts), speed(attempts), attempts)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _command() -> str:
    """Return the command that measures the same; its paths are this machine's affair."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return f"python -m benchmarks.structured {shlex.join(words)}"


def _write(text: str, report: Any, output: Path | None) -> None:
    """Print the tables; write them and the findings as JSON where they are asked for."""
    print(text)
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    output.with_suffix(".md").write_text(text)
