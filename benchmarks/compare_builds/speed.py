"""Both builds are measured in turns, on servers that run beside each other; ratios of medians."""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import rows
from benchmarks.client import connect
from benchmarks.compare_builds.builds import Build
from benchmarks.compare_builds.requests import CAUSAL, DIFFUSION
from benchmarks.rows import Bench
from benchmarks.servers import Running, running

LEAST_RATIO = 0.98  # of speed, after over before
MOST_MEMORY = 1.03
COPIED = rows.records(3, 8)
MIB = 2**20

Measure = Callable[[Bench], Awaitable[rows.Measured]]


async def copy_predicted(bench: Bench) -> rows.Measured:
    """Repeat a JSON text that the request's `prediction` holds."""
    messages = bench.prompt(f"Repeat this JSON exactly:\n{COPIED}")
    extra = {"prediction": {"type": "content", "content": COPIED}, "ignore_eos": True}
    answers = [await bench.ask(messages, 220, **extra) for _ in range(2)]
    return rows.Measured("tok/s", [statistics.mean(a.decode_rate for a in answers)])


async def diffusion_streams(bench: Bench, count: int, *, unmasker: str = "auto") -> rows.Measured:
    """Fill canvases of 64 tokens in `count` streams at once."""
    on = Bench(bench.client, DIFFUSION, 1, bench.rng)
    decoding = {"unmasker": unmasker, "canvas": {"attention": "block", "block_size": 8}}
    calls = [
        on.ask(
            on.prompt('["Ada Hale", "Leo Frost", "Mira Baker", "Otto Price"] -> shuffle'),
            64,
            ignore_eos=True,
            temperature=1,
            seed=i,
            decoding=decoding,
        )
        for i in range(count)
    ]
    rate, _ = await on.batch(calls)
    return rows.Measured("tok/s", [rate])


MEASURES: Mapping[str, Measure] = {
    "1 stream": rows.single,
    "8 streams": rows.eight_streams,
    "32 streams": rows.many_streams,
    "TTFT": rows.ttft,
    "JSON": rows.json_single,
    "JSON, 8 streams": rows.json_streams,
    "copy": rows.copy,
    "copy, predicted": copy_predicted,
    "dLLM": functools.partial(diffusion_streams, count=1),
    "dLLM, 8 streams": functools.partial(diffusion_streams, count=8),
    "dLLM, threshold, 8 streams": functools.partial(
        diffusion_streams, count=8, unmasker="threshold"
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of both builds."""

    title: str
    unit: str
    before: Sequence[float]
    after: Sequence[float]

    @property
    def ratio(self) -> float:
        """After over before; above 1 is better, but for memory, where it is the growth."""
        ratio = statistics.median(self.after) / statistics.median(self.before)
        return 1 / ratio if self.unit == "ms" else ratio

    @property
    def is_bad(self) -> bool:
        """Whether it got slower, or larger, by more than is allowed."""
        return self.ratio > MOST_MEMORY if self.unit == "MiB" else self.ratio < LEAST_RATIO

    def __str__(self) -> str:
        sides = "  ".join(
            f"{statistics.median(side):9.4g} ({min(side):.4g}-{max(side):.4g})"
            for side in (self.before, self.after)
        )
        mark = "  BAD" if self.is_bad else ""
        return f"{self.title:28} {self.unit:6} {sides}  {self.ratio:6.3f}{mark}"


def compare_speed(
    builds: tuple[Build, Build], titles: Sequence[str], reps: int, keep: Path
) -> list[Row]:
    """Measure, print each row as it is known, and return them all, memory last."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(build.command([CAUSAL, DIFFUSION]), keep / f"{build.name}.log")
            )
            for build in builds
        ]
        found = asyncio.run(_measured(servers, titles, reps))
        for title, measure in (("memory, all processes", sum), ("memory, largest process", max)):
            sides = [[measure(_resident(server.pid))] for server in servers]
            found.append(Row(title, "MiB", *sides))
            print(found[-1], flush=True)
    return found


async def _measured(servers: Sequence[Running], titles: Sequence[str], reps: int) -> list[Row]:
    async with connect(servers[0].base_url) as one, connect(servers[1].base_url) as other:
        benches = [Bench(client, CAUSAL, 1) for client in (one, other)]
        for bench in benches:
            await rows.check(bench)
        return [await _row(benches, title, reps) for title in titles]


async def _row(benches: Sequence[Bench], title: str, reps: int) -> Row:
    """Measure in turns; who begins changes, and a first round only warms up."""
    samples: list[list[float]] = [[], []]
    for rep in range(-1, reps):
        for i in (0, 1) if rep % 2 else (1, 0):
            measured = await MEASURES[title](benches[i])
            if rep >= 0:
                samples[i].append(measured.median)
    row = Row(title, measured.unit, *samples)
    print(row, flush=True)
    return row


def _resident(pid: int) -> list[float]:
    """Return the resident memory of a process and of each below it."""
    process = psutil.Process(pid)
    return [each.memory_info().rss / MIB for each in [process, *process.children(recursive=True)]]
