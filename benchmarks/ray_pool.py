"""Workers on a Ray cluster: what they cost, and what is lost with a worker, a node, an upgrade.

    python -m benchmarks.ray_pool

Starts a head and two nodes on this machine, and `plait serve --pool ray` with four workers on them.
Exit code 1 when a stream hangs, a request fails with an error that does not tell to send it again
or later than `--found-s` after what it is lost with, a worker is not replaced, an upgrade loses a
request, or an answer differs from a local worker's.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field

from benchmarks.client import Answer, ServerFault, ask, connect
from benchmarks.command_line import Command, command_config, run_command
from benchmarks.machine import ROOT, this_machine
from benchmarks.ray_nodes import SLOT, RayNodes, ray_nodes, workers_of
from benchmarks.servers import Command as ServerCommand
from benchmarks.servers import Running, Venvs, plait, running
from benchmarks.turns import in_turns, paired_ratios, spread

WORKERS = 4
REPLACED_S = 120.0
HANGS_S = 600.0
LONG = 1000  # tokens of an answer that something is killed in the middle of
ANSWERED = "answered"


class RayPoolOptions(Command):
    """Measure a pool on a Ray cluster of this machine."""

    model_config = command_config("benchmarks.ray_pool")

    model: str = Field("smollm2-135m-instruct", description="Built-in name, file or folder.")
    reps: int = Field(5, ge=1, description="Repetitions of the comparison with a local worker.")
    tokens: int = Field(128, ge=2, description="Of each answer that is timed.")
    streams: int = Field(32, ge=1, description="At once, while workers and nodes are killed.")
    found_s: float = Field(5.0, gt=0, description="A lost request is told within so long.")
    rate: float = Field(5.0, gt=0, description="Requests a second during the upgrade.")


@dataclass(frozen=True, slots=True)
class Speed:
    """A repetition of eight streams at one server."""

    tokens_per_s: float
    front_end_us: float  # CPU time of the front end for a token
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of streams while something was killed."""

    what: str
    failed: int
    finished: int
    slowest_s: float  # from the kill to the last error; 0: none
    wrong: Sequence[str]  # errors that do not tell to send the request again
    replaced_s: float

    def is_good(self, found_s: float) -> bool:
        """Whether all that was lost was told in time, and is back."""
        return not self.wrong and self.slowest_s <= found_s and self.replaced_s < REPLACED_S


def on_ray(command: ServerCommand, address: str, *options: str) -> ServerCommand:
    """Return a server's command with its workers on a cluster."""
    ray = ("--pool", "ray", "--ray-address", address, "--ray-cpus", "0")
    return replace(command, argv=[*command.argv, *ray, *options])


async def eight_streams(server: Running, rep: int, tokens: int) -> Speed:
    """Return how fast eight streams of new prompts were, all at once."""
    async with connect(server.base_url) as client:
        began, cpu = time.perf_counter(), _own_cpu_seconds(server.pid)
        answers = await asyncio.gather(
            *(_ask(client, server.model, f"Count from {rep * 8 + i}.", tokens) for i in range(8))
        )
    number = sum(answer.tokens for answer in answers)
    return Speed(
        number / (time.perf_counter() - began),
        1e6 * (_own_cpu_seconds(server.pid) - cpu) / number,
        tuple(answer.text for answer in answers),
    )


@dataclass(frozen=True, slots=True)
class Site:
    """A server whose workers are on the nodes of a cluster."""

    server: Running
    nodes: RayNodes

    def workers(self) -> set[int]:
        """Return the workers' processes."""
        return {pid for node in self.nodes.nodes for pid in workers_of(node)}

    async def wait_running(self, number: int) -> None:
        """Return when so many requests run."""
        async with httpx.AsyncClient(base_url=self.server.base_url) as client:
            while _sum(await client.get("/metrics"), "vllm:num_requests_running") < number:
                await asyncio.sleep(0.1)

    async def wait_whole(self, gone: set[int]) -> None:
        """Return when all workers are up and none of them is among the lost ones."""
        async with asyncio.timeout(REPLACED_S), connect(self.server.base_url) as client:
            while True:
                left = self.workers() - gone
                if len(left) == WORKERS and not (await client.get("/ready")).json()["reason"]:
                    return
                await asyncio.sleep(0.1)


async def lose(
    options: RayPoolOptions, site: Site, what: str, kill: Callable[[], set[int]]
) -> Loss:
    """Kill workers while streams run, `kill` says which; return what became of the streams."""
    told: list[float] = []
    wrong: list[str] = []
    killed_at = 0.0

    async def stream(index: int) -> None:
        try:
            await _ask(client, site.server.model, f"Tell me of the number {index}.", LONG)
        except (ServerFault, httpx.TransportError) as error:
            told.append(time.perf_counter() - killed_at)
            if "retry" not in str(error):
                wrong.append(f"{type(error).__name__}: {error}")

    async with connect(site.server.base_url) as client:
        tasks = [asyncio.create_task(stream(index)) for index in range(options.streams)]
        await site.wait_running(options.streams)
        killed_at = time.perf_counter()
        gone = kill()
        await site.wait_whole(gone)
        replaced_s = time.perf_counter() - killed_at
        done, hung = await asyncio.wait(tasks, timeout=HANGS_S)
        for task in hung:
            task.cancel()
    wrong += ["a stream hangs" for _ in hung]
    return Loss(what, len(told), len(done) - len(told), max(told, default=0.0), wrong, replaced_s)


async def upgrade(options: RayPoolOptions, site: Site) -> Counter[str]:
    """Have the server replace its workers under load; return how the requests ended."""
    ends: Counter[str] = Counter()

    async def send(index: int) -> None:
        try:
            await _ask(client, site.server.model, f"Tell me of the number {index}.", 16)
            ends[ANSWERED] += 1
        except (ServerFault, httpx.TransportError) as error:
            ends[f"{type(error).__name__}: {error}"] += 1

    before = site.workers()
    os.kill(site.server.pid, signal.SIGUSR2)
    replaced = asyncio.create_task(site.wait_whole(before))
    async with connect(site.server.base_url) as client, asyncio.TaskGroup() as group:
        for index in itertools.count():
            if replaced.done():
                break
            group.create_task(send(index))
            await asyncio.sleep(1 / options.rate)
    await replaced
    return ends


async def compare(options: RayPoolOptions, local: Running, remote: Running) -> list[list[Speed]]:
    """Return the speed of a local worker and of one on a node, in turns."""
    servers = (local, remote)
    return await in_turns(
        2, options.reps, lambda i, rep: eight_streams(servers[i], rep, options.tokens)
    )


async def _ask(client: httpx.AsyncClient, model: str, prompt: str, tokens: int) -> Answer:
    plain = {"ignore_eos": True, "decoding": {"drafter": "off"}}
    return await ask(client, model, [{"role": "user", "content": prompt}], tokens, **plain)


def _own_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a front end alone, without its workers."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _sum(metrics: httpx.Response, name: str) -> float:
    families = text_string_to_metric_families(metrics.text)
    return sum(s.value for family in families for s in family.samples if s.name == name)


def _kill_worker(site: Site) -> set[int]:
    victim = workers_of(site.nodes.nodes[0])[0]
    os.kill(victim, signal.SIGKILL)
    return {victim}


def _kill_node(site: Site) -> set[int]:
    node = site.nodes.nodes[0]
    lost = set(workers_of(node))
    site.nodes.kill(node)
    return lost


def print_speeds(found: list[list[Speed]]) -> bool:
    """Print what a worker on a node costs; return whether its answers are a local one's."""
    local, remote = found
    rates = [[each.tokens_per_s for each in side] for side in found]
    ratios = paired_ratios(rates[1], rates[0], "tok/s")
    print(f"8 streams, tok/s: local {spread(rates[0])}, on a node {spread(rates[1])}")
    print(f"  of a local worker's: {spread(ratios)}")
    for name, side in (("local", local), ("on a node", remote)):
        print(
            f"  front end, CPU us a token, {name}: {spread([each.front_end_us for each in side])}"
        )
    return all(a.texts == b.texts for a, b in zip(local, remote, strict=True))


def print_loss(loss: Loss) -> None:
    """Print what became of streams."""
    print(
        f"{loss.what} killed: {loss.failed} of {loss.failed + loss.finished} streams failed, "
        f"the last {loss.slowest_s:.2f} s after it; all workers back after {loss.replaced_s:.1f} s"
    )
    for fault in loss.wrong:
        print(f"  wrong: {fault}")


def main() -> int:
    """Print what was measured; return 1 if something was lost that should not be."""
    options = run_command(RayPoolOptions)
    assert isinstance(options, RayPoolOptions)
    logs = Path(tempfile.mkdtemp(prefix="plait-ray-"))
    command = plait(Venvs.below(ROOT, logs, options.model))
    print(this_machine())
    with ray_nodes(2, slots=WORKERS) as nodes:
        one = on_ray(command, nodes.address, "--threads", str(os.cpu_count()))
        with running(command, logs / "local.log") as local, running(one, logs / "one.log") as far:
            is_same = print_speeds(asyncio.run(compare(options, local, far)))
        many = ("--replicas", str(WORKERS), "--threads", "1", "--ray-resources", f"{SLOT}=1")
        with running(on_ray(command, nodes.address, *many), logs / "four.log") as server:
            site = Site(server, nodes)
            ends = asyncio.run(upgrade(options, site))
            print(f"{WORKERS} workers replaced under load; {ends.total()} requests: {dict(ends)}")
            losses = []
            for what, kill in (("worker", _kill_worker), ("node", _kill_node)):
                losses.append(asyncio.run(lose(options, site, what, partial(kill, site))))
                print_loss(losses[-1])
    is_good = all(loss.is_good(options.found_s) for loss in losses)
    return int(not (is_same and is_good and ends.total() == ends[ANSWERED]))


if __name__ == "__main__":
    sys.exit(main())
