"""The memory available to this process: the machine's, limited by its control groups."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60  # control groups v1 write "no limit" as a number of about this size


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """Bytes: in total, and free or reclaimable now."""

    total: int
    available: int


def system_memory(root: Path = Path("/")) -> SystemMemory | None:
    """Return the memory that this process can use; None where the system does not say.

    Args:
        root: The folder that contains `proc` and `sys`.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    total, available = fields["MemTotal"], fields["MemAvailable"]
    for limit, used in _limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return SystemMemory(total, available)


def return_freed_memory() -> None:
    """Give freed memory that the C library keeps back to the system, where the library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used) of each control group of this process; page cache counts as unused."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _group_limits(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _group_limits(root / "sys/fs/cgroup/memory", path, *names)


def _group_limits(mount: Path, path: str, limit: str, used: str) -> Iterator[tuple[int, int]]:
    """Yield (limit, used) of a group and its ancestors; in a container, its group is the root."""
    inner = Path(path.lstrip("/"))
    for group in (inner, *inner.parents):
        try:
            most = int((mount / group / limit).read_text())
            now = int((mount / group / used).read_text()) - _page_cache(mount / group)
        except (OSError, ValueError):  # the group is not visible from here, or the limit is "max"
            continue
        if most < _UNLIMITED:
            yield most, now


def _page_cache(group: Path) -> int:
    """Return the bytes of inactive page cache, which the kernel reclaims first."""
    text = (group / "memory.stat").read_text()
    fields = dict(line.split() for line in text.splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
