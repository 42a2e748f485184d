"""What a server's processes take of the machine: CPU time and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

MIB = 2**20


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """Stop processes, and all below them, for a while: some that wait take much of a core."""
    stopped = [process for pid in pids for process in tree(pid)]
    try:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process, and all that live below it, have used."""
    return sum(times.user + times.system for times in (p.cpu_times() for p in tree(pid)))


def resident_mib(pid: int) -> list[float]:
    """Return the memory of a process and of each below it, in MiB; their sum counts a page once.

    That is the PSS, but a page of a file counts as if no other program had it in memory: servers
    that run beside each other and read the same files must not make each other look small.
    """
    maps = [[*process.memory_maps(grouped=True)] for process in tree(pid)]
    sharers: dict[str, int] = defaultdict(int)
    for each in maps:
        for part in each:
            sharers[part.path] += 1
    return [
        sum(
            part.anonymous + (part.rss - part.anonymous) / sharers[part.path]
            if part.path.startswith("/")
            else part.pss
            for part in each
        )
        / MIB
        for each in maps
    ]
