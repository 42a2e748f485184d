"""The machine that a benchmark runs on: its hardware, the code measured, its CPU time. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MEASURED = ("decoders", "kernels", "server/engine", "server/models", "benchmarks/tasks")
_SOURCES = frozenset({".py", ".cpp", ".h"})
_VECTOR = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer, and the version of the project that was measured."""

    cpu: str
    cores: int
    memory_gib: float
    vector: str  # the widest vector instructions of note
    load: float  # load average of the last minute
    python: str
    torch: str
    plait: str  # the commit, followed by + if the work tree has changes; installed: the version

    @property
    def slug(self) -> str:
        """A short name for files."""
        return re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")


def this_machine() -> Machine:
    """Return a description of this machine."""
    info = Path("/proc/cpuinfo").read_text()
    flags = set(_field(info, "flags").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_field(info, "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / 2**30, 1),
        vector=" ".join(name for name in _VECTOR if name in flags),
        load=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=metadata.version("torch"),
        plait=commit() or metadata.version("plait"),
    )


def commit() -> str:
    """Return the commit of the checkout that holds this code; empty if there is no checkout."""
    head = _git("rev-parse", "--short", "HEAD")
    return head + "+" * bool(head and _git("status", "--porcelain", "--untracked-files=no"))


def code() -> str:
    """Return a hash of the sources that a measurement depends on.

    Two commits with the same hash give comparable measurements.
    """
    digest = hashlib.blake2b(digest_size=12)
    for folder in _MEASURED:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in _SOURCES:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def cpu_seconds() -> tuple[float, float]:
    """Return the machine's (busy, total) CPU seconds so far, over all cores."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    total = sum(fields) / os.sysconf("SC_CLK_TCK")
    idle = (fields[3] + fields[4]) / os.sysconf("SC_CLK_TCK")
    return total - idle, total


def _field(info: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.M)
    return found[1].strip() if found else ""


def _git(*arguments: str) -> str:
    if not (ROOT / ".git").exists():  # installed: git would describe a surrounding repository
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout.decode().strip()
