"""Throughput and latency of a setting with one, some and many requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.decoders.cells import Sample, requests_of
from benchmarks.decoders.presets import Setting
from benchmarks.decoders.running import LoadedModel, MeasuredRun, run_requests

STREAMS = (1, 8, 32)
REPETITIONS = 3
ANSWERS = 64  # a run


@dataclass(frozen=True, slots=True)
class Rate:
    """One setting with a number of requests at once."""

    setting: str
    streams: int
    tokens_per_second: float  # over all streams; median of the runs
    slowest: float  # of the runs
    fastest: float
    latency_ms: float  # from the request to the last token; median of answers, then of runs
    forwards: float  # per answer
    steps: int  # of the engine


def serving(served: LoadedModel, settings: Sequence[Setting], tasks: Sequence[str]) -> list[Rate]:
    """Answer the same mixture of tasks with every setting, in turn, at each number of streams.

    The settings take turns within each repetition, so that a machine that slows down slows them
    all.
    """
    rates = []
    for streams in STREAMS:
        runs: dict[str, list[MeasuredRun]] = {setting.name: [] for setting in settings}
        for _ in range(REPETITIONS):
            for setting in settings:
                runs[setting.name].append(_run(served, setting, tasks, streams))
        rates += [_rate(name, streams, found) for name, found in runs.items()]
    return rates


def _run(served: LoadedModel, setting: Setting, tasks: Sequence[str], streams: int) -> MeasuredRun:
    each = -(-ANSWERS // len(tasks))
    sample = Sample(cases=each)
    cases = [
        case for group in zip(*(sample.of(task) for task in tasks), strict=True) for case in group
    ]
    return run_requests(served, requests_of(served, setting, cases[:ANSWERS]), streams)


def _rate(setting: str, streams: int, runs: Sequence[MeasuredRun]) -> Rate:
    rates = [run.tokens / run.seconds for run in runs]
    latencies = [median(answer.latency for answer in run.answers) for run in runs]
    return Rate(
        setting=setting,
        streams=streams,
        tokens_per_second=median(rates),
        slowest=min(rates),
        fastest=max(rates),
        latency_ms=1000 * median(latencies),
        forwards=runs[0].forwards / len(runs[0].answers),
        steps=runs[0].steps,
    )
