"""What a number was measured on: without it, it means nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer and the state of the project."""

    cpu: str
    cores: int
    memory_gib: float
    vector: str  # the widest vector instructions of note
    python: str
    torch: str
    commit: str  # with a + behind it when the work tree differs

    @property
    def slug(self) -> str:
        """A short name for files."""
        return re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")


def this_machine() -> Machine:
    """Describe where we are."""
    info = Path("/proc/cpuinfo").read_text()
    flags = set(_field(info, "flags").split())
    widest = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_field(info, "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / 2**30, 1),
        vector=" ".join(widest),
        python=platform.python_version(),
        torch=metadata.version("torch"),
        commit=_git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain")),
    )


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
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout.decode().strip()
