"""Memory and start of two builds' servers with default options, side by side.

    python -m benchmarks.footprint --before PATH --after PATH [start] [memory]

Each path is a checkout with its own .venv (`make dev`). Start: seconds until /ready answers 200;
builds take turns, after one start each that warms the page cache. Memory: both servers get the same
mixed requests, 8 at a time, one server after the other; then every process's memory is read, as it
is and after a pause. PSS divides a page among all processes that map it, those of other servers on
the machine included; USS counts what would be free without the process. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.client import connect
from benchmarks.compare_builds.builds import Build
from benchmarks.prompts import AS_PERSON, NAMES, WORDS
from benchmarks.servers import Running, running

AT_ONCE = 8
LONG_WORDS = (600, 1800)  # of a long prompt; a token each
CHAT = "/v1/chat/completions"
DIFFUSION = "tiny-diffusion"  # asked, too, where a server has it
MEGABYTE = 1e6

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of one process, in bytes."""

    process: str
    rss: int
    pss: int
    uss: int


def mixed_requests(count: int, models: Sequence[str]) -> list[Body]:
    """Return chats: of ten, six are plain, two fill a schema, one has n=2, one is long.

    Args:
        models: what the server has; a diffusion model among them gets every twentieth request.
    """
    rng = random.Random(200)
    bodies = [_request(rng, i) | {"model": models[0], "seed": i} for i in range(count)]
    if DIFFUSION in models:
        for i in range(19, count, 20):
            bodies[i] = _said("[1, 2, 3] -> reverse") | {"model": DIFFUSION, "max_tokens": 32}
    return bodies


def _request(rng: random.Random, i: int) -> Body:
    kind = i % 10
    words = rng.randint(*LONG_WORDS) if kind == 9 else rng.randint(20, 100)
    text = f"[{i}] " + " ".join(rng.choice(WORDS) for _ in range(words))
    if kind in (3, 7):
        text = f"{text}. Describe a person called {NAMES[i % len(NAMES)]} as JSON."
        return _said(text) | AS_PERSON | {"max_tokens": 64}
    body = _said(text) | {"max_tokens": rng.randint(8, 32), "temperature": 0.7}
    return body | {"n": 2} if kind == 5 else body


def _said(text: str) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


async def send(server: Running, count: int) -> str:
    """Send the mixed requests, several at once; return a hash of all answers.

    Raises:
        httpx.HTTPStatusError: one was refused.
    """
    async with connect(server.base_url) as client:
        models = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(body: Body) -> str:
            async with room:
                response = (await client.post(CHAT, json=body)).raise_for_status()
            return str([choice["message"]["content"] for choice in response.json()["choices"]])

        answers = await asyncio.gather(*map(ask, mixed_requests(count, models)))
    return hashlib.blake2b("\n".join(answers).encode(), digest_size=6).hexdigest()


def resident(pid: int) -> list[Resident]:
    """Return the memory of a process and of each below it."""
    process = psutil.Process(pid)
    return [_resident(each) for each in [process, *process.children(recursive=True)]]


def _resident(process: psutil.Process) -> Resident:
    command, memory = process.cmdline(), process.memory_full_info()
    is_module = "-m" in command
    name = command[command.index("-m") + 1].rpartition(".")[2] if is_module else "front end"
    return Resident(name, memory.rss, memory.pss, memory.uss)


def compare_memory(builds: Sequence[Build], count: int, pause_s: float, keep: Path) -> None:
    """Print each process's memory: idle, after the requests, and after a pause."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(build.command([]), keep / f"{build.name}.log"))
            for build in builds
        ]
        _print_memory("idle", builds, servers)
        hashes = [asyncio.run(send(server, count)) for server in servers]
        _print_memory(f"after {count} requests", builds, servers)
        time.sleep(pause_s)
        _print_memory(f"{pause_s:.0f} s later", builds, servers)
        print("the same answers" if len({*hashes}) == 1 else f"answers differ: {hashes}")


def _print_memory(title: str, builds: Sequence[Build], servers: Sequence[Running]) -> None:
    print(f"| MB, {title} | RSS | PSS | USS |\n| --- | ---: | ---: | ---: |")
    totals = []
    for build, server in zip(builds, servers, strict=True):
        found = resident(server.pid)
        sums = [sum(getattr(each, kind) for each in found) for kind in ("rss", "pss", "uss")]
        for each in found:
            print(f"| {build.name}, {each.process} | {_row([each.rss, each.pss, each.uss])} |")
        print(f"| {build.name}, all | {_row(sums)} |")
        totals.append(sums)
    ratios = (after / before for before, after in zip(totals[0], totals[-1], strict=True))
    print(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |\n", flush=True)


def _row(sizes: Sequence[int]) -> str:
    return " | ".join(f"{size / MEGABYTE:.0f}" for size in sizes)


def compare_start(builds: Sequence[Build], reps: int, keep: Path) -> None:
    """Print the seconds from start to ready, builds in turns."""
    seconds: dict[str, list[float]] = {build.name: [] for build in builds}
    for rep in range(-1, reps):
        for build in builds if rep % 2 else reversed(builds):
            with running(build.command([]), keep / f"{build.name}.log") as server:
                seconds[build.name].append(server.seconds_to_ready)
    timed = {name: samples[1:] for name, samples in seconds.items()}  # the first only warms up
    for name, samples in timed.items():
        median = statistics.median(samples)
        print(f"{name}: ready in {median:.2f} s ({min(samples):.2f}-{max(samples):.2f})")
    before, after = (statistics.median(samples) for samples in timed.values())
    print(f"ratio {after / before:.2f}", flush=True)


def main() -> None:
    """Compare."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that servers are stopped
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", nargs="*", help="start, memory; both unless named")
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, required=True, help="another one")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds")
    parser.add_argument("--reps", type=int, default=5, help="starts of each build")
    parser.add_argument("--keep", type=Path, help="folder for logs")
    args = parser.parse_args()
    if unknown := {*args.what} - {"start", "memory"}:
        parser.error(f"neither start nor memory: {', '.join(unknown)}")
    keep = args.keep or Path(tempfile.mkdtemp(prefix="plait-footprint-"))
    keep.mkdir(parents=True, exist_ok=True)
    builds = Build("before", args.before.absolute()), Build("after", args.after.absolute())
    print("; ".join(f"{build.name}: {build.commit or build.path}" for build in builds))
    if "start" in args.what or not args.what:
        compare_start(builds, args.reps, keep)
    if "memory" in args.what or not args.what:
        compare_memory(builds, args.requests, args.pause, keep)


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"a request failed: {error}")
