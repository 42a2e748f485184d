"""How near each search comes to the law, what it costs, and what searches cost other requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.decoders.statistics import Interval
from benchmarks.machine import Machine
from benchmarks.structured.faithful.laws import (
    Laws,
    enumerate_laws,
    of_exact_samples,
    text_of,
    with_error,
)
from benchmarks.structured.faithful.setup import LETTERS, SEARCHES, Lab, Task, decoding_of
from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.messages import Delta

BATCH = 25  # requests at once
STREAMS, GROUPS, PARTICLES, STREAM_TOKENS = 8, 8, 16, 48


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What one search returned for one task."""

    divergence: Interval  # of the samples from the law, in nats
    tokens: float  # drawn for each sample
    seconds: float  # of each sample


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task before all searches."""

    task: str
    num_texts: int
    legal: float  # the probability that the model's text is legal
    exact: Interval  # divergence of as many exact samples
    searches: Mapping[str, SearchResult]
    checks_per_token: float  # of awrs, with a black box in place of the mask
    is_same: bool  # whether awrs has drawn what masking draws


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Plain streams alone, and beside searches."""

    alone: float  # tokens a second of all of them
    beside: float
    search_tokens: float  # tokens a second of the searches beside them


@dataclass(frozen=True, slots=True)
class FaithfulReport:
    """Everything that a run has found, and where."""

    date: str
    command: str
    machine: Machine
    samples: int
    vocab_size: int
    tasks: list[TaskResult]
    load: LoadResult
    seconds: float
    notes: list[str] = field(default_factory=list)


def measure_task(lab: Lab, task: Task, samples: int, seed: int) -> TaskResult:
    """Draw from a task with every search, each sample by a request of its own."""
    laws = enumerate_laws(lab, task)
    searches = {name: _measure(lab, task, laws, name, samples, seed) for name in SEARCHES}
    checks, is_same = _count_checks(lab, task, seed)
    exact = of_exact_samples(samples, laws.conditional)
    return TaskResult(
        task.name, len(laws.conditional), laws.legal, exact, searches, checks, is_same
    )


def _measure(lab: Lab, task: Task, laws: Laws, name: str, samples: int, seed: int) -> SearchResult:
    texts, tokens, begun = list[str](), 0, time.perf_counter()
    for first in range(seed, seed + samples, BATCH):
        for each in range(first, min(first + BATCH, seed + samples)):
            lab.ask(task, each, 1, decoding_of(SEARCHES[name]))
        for drawn, last in lab.run().values():
            texts.append(text_of(lab, drawn))
            tokens += len(drawn) if last.search is None else last.search.num_tokens
    seconds = (time.perf_counter() - begun) / samples
    return SearchResult(with_error(texts, laws.conditional), tokens / samples, seconds)


def _count_checks(lab: Lab, task: Task, seed: int) -> tuple[float, bool]:
    """Return the checks for each token, and whether the texts are those of masking."""
    found = []
    for key, sampler in ((task.name, "ordinary"), (f"{task.name}, checked", "awrs")):
        names = [
            lab.ask(task, each, 1, decoding_of(None, sampler), key=key)
            for each in range(seed, seed + 2 * BATCH)
        ]
        answers = lab.run()
        found.append([answers[name, 0] for name in names])
    masked, checked = found
    num_checks = sum((last.trace or {})["checks"] for _, last in checked)
    num_tokens = sum(len(tokens) for tokens, _ in checked)
    return num_checks / num_tokens, [a for a, _ in masked] == [b for b, _ in checked]


def measure_load(lab: Lab) -> LoadResult:
    """Time plain streams alone, then beside groups of particles that outlast them."""
    alone, _ = _stream(lab)
    names = [
        lab.ask(
            LETTERS,
            each,
            1,
            decoding_of({"name": "smc", "num_particles": PARTICLES}),
            max_tokens=401,
        )
        for each in range(GROUPS)
    ]
    for _ in range(4):  # their prompts are read, and their forks made
        lab.engine.step()
    beside, drawn = _stream(lab)
    for name in names:
        lab.engine.abort(name)
    while lab.engine.has_work:
        lab.engine.step()
    lab.engine.check_integrity()
    return LoadResult(alone, beside, drawn)


def _stream(lab: Lab) -> tuple[float, float]:
    """Return the tokens a second of plain streams, and of everyone else meanwhile."""
    names = {
        lab.ask(
            LETTERS,
            i,
            1,
            decoding_of(None),
            key="free",
            stops=[],
            sampling=SamplingParams(seed=i),
            max_tokens=STREAM_TOKENS + 1,
        )
        for i in range(STREAMS)
    }
    for _ in range(2):
        lab.engine.step()  # prompts
    before = lab.engine.stats().counters.generation_tokens
    begun, running, own = time.perf_counter(), set(names), 0
    while running:
        for report in lab.engine.step():
            if isinstance(report, Delta) and report.request_id in names:
                own += len(report.token_ids)
                running -= {report.request_id} if report.finish_reason else set()
    seconds = time.perf_counter() - begun
    whole = lab.engine.stats().counters.generation_tokens - before
    return own / seconds, (whole - own) / seconds
