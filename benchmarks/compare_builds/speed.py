"""Both builds are measured in turns, on servers that run beside each other.

What is compared is the ratio of each repetition, whose prompts are the same for both builds and
new; drafts are off but in the rows that are about them.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.client import connect
from benchmarks.compare_builds.builds import Build
from benchmarks.compare_builds.requests import CAUSAL, DIFFUSION
from benchmarks.processes import cpu_seconds, resident_mib
from benchmarks.rows import Bench, Sample
from benchmarks.servers import Running, running
from benchmarks.turns import Spread, in_turns, paired_ratios, spread

LEAST_RATIO = 0.98  # of speed, after over before
MOST_MEMORY = 1.03
MOST_IDLE = 0.05  # of a core, which a server may use while the other one is measured
PEOPLE = ("Ada Hale", "Leo Frost", "Mira Baker", "Otto Price", "Uma Novak", "Ben Stone")
PLAIN = {"decoding": {"drafter": "off"}}

Measure = Callable[[Bench], Awaitable[Sample]]


async def diffusion_streams(bench: Bench, count: int, *, unmasker: str = "auto") -> Sample:
    """Fill canvases of 64 tokens in `count` streams at once."""
    on = replace(bench, model=DIFFUSION)
    decoding = {"unmasker": unmasker, "canvas": {"attention": "block", "block_size": 8}}
    calls = [
        on.ask(
            on.prompt(f"{json.dumps(on.rng.sample(PEOPLE, 4))} -> shuffle"),
            64,
            ignore_eos=True,
            temperature=1,
            seed=on.rng.randrange(2**31),
            decoding=decoding,
        )
        for _ in range(count)
    ]
    rate, _ = await on.batch(calls)
    return Sample("tok/s", rate)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one row measures; `is_drafted`: with the drafts that the server chooses."""

    measure: Measure
    is_drafted: bool = False


_blocks = functools.partial(functools.partial, diffusion_streams)
MEASURES: Mapping[str, Kind] = {
    "1 stream": Kind(rows.single),
    "1 stream, drafts": Kind(rows.single, is_drafted=True),
    "8 streams": Kind(rows.eight_streams),
    "32 streams": Kind(rows.many_streams),
    "TTFT": Kind(rows.ttft),
    "JSON": Kind(rows.json_single),
    "JSON, drafts": Kind(rows.json_single, is_drafted=True),
    "JSON, 8 streams": Kind(rows.json_streams),
    "copy": Kind(rows.copy, is_drafted=True),
    "copy, predicted": Kind(functools.partial(rows.copy, is_predicted=True), is_drafted=True),
    "dLLM": Kind(_blocks(count=1)),
    "dLLM, 8 streams": Kind(_blocks(count=8)),
    "dLLM, threshold, 8 streams": Kind(_blocks(count=8, unmasker="threshold")),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of both builds; entry i of both sides comes from the same repetition."""

    title: str
    unit: str
    before: Sequence[float]
    after: Sequence[float]
    idle: float = 0.0  # of a core, what a server used while the other one was measured

    @property
    def ratio(self) -> Spread:
        """After over before, by repetition; above 1 is better, but for memory: its growth."""
        ratios = paired_ratios(self.after, self.before, self.unit)
        return spread([1 / ratio for ratio in ratios] if self.unit == "MiB" else ratios)

    @property
    def is_bad(self) -> bool:
        """Whether it got slower, or larger, by more than is allowed."""
        median = self.ratio.median
        return median > MOST_MEMORY if self.unit == "MiB" else median < LEAST_RATIO

    def __str__(self) -> str:
        sides = "  ".join(f"{spread(side)!s:24}" for side in (self.before, self.after))
        ratio = self.ratio
        marks = "  BAD" if self.is_bad else ""
        if self.idle > MOST_IDLE:
            marks += f"  the idle server used {self.idle:.0%} of a core"
        paired = f"{ratio.median:6.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
        return f"{self.title:28} {self.unit:6} {sides}  {paired}{marks}"


def fields_of(title: str, rep: int) -> dict[str, Any]:
    """Return the fields of every request of a repetition.

    With drafts, each repetition has a namespace of its own: what a server has learned from the
    answers of earlier ones would make it faster by and by.
    """
    return {"cache_salt": f"{title} {rep}"} if MEASURES[title].is_drafted else PLAIN


def compare_speed(
    builds: tuple[Build, Build], titles: Sequence[str], reps: int, keep: Path
) -> list[Row]:
    """Measure, print each row as it is known, and return them all, memory last."""
    print(f"{'':35} {'before':24}  {'after':24}   ratio, paired", flush=True)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(build.command([CAUSAL, DIFFUSION]), keep / f"{build.name}.log")
            )
            for build in builds
        ]
        found = asyncio.run(_measured(servers, titles, reps))
        for title, measure in (("memory, all processes", sum), ("memory, largest process", max)):
            before, after = ([measure(resident_mib(server.pid))] for server in servers)
            found.append(Row(title, "MiB", before, after))
            print(found[-1], flush=True)
    return found


async def _measured(servers: Sequence[Running], titles: Sequence[str], reps: int) -> list[Row]:
    async with connect(servers[0].base_url) as one, connect(servers[1].base_url) as other:
        benches = [Bench(client, CAUSAL) for client in (one, other)]
        for bench in benches:
            await rows.check(bench)
        return [await _row(benches, servers, title, reps) for title in titles]


async def _row(benches: Sequence[Bench], servers: Sequence[Running], title: str, reps: int) -> Row:
    """Measure in turns; who begins changes, and a first round only warms up."""
    used, spent, clock = 0.0, 0.0, asyncio.get_running_loop().time

    async def measure(i: int, rep: int) -> Sample:
        nonlocal used, spent
        other, since = servers[1 - i].pid, clock()
        used -= cpu_seconds(other)
        sample = await MEASURES[title].measure(benches[i].at(title, rep, fields_of(title, rep)))
        used += cpu_seconds(other)
        spent += clock() - since
        return sample

    samples = await in_turns(2, reps, measure)
    before, after = ([sample.value for sample in side] for side in samples)
    row = Row(title, samples[0][0].unit, before, after, used / spent)
    print(row, flush=True)
    return row
