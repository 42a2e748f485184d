"""What a number was measured on: without it, it means nothing. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_MEASURED = ("decoders", "kernels", "server/engine", "server/models", "server/bench/tasks")
_SOURCES = frozenset({".py", ".cpp", ".h"})
_VECTOR = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer and the state of the project."""

    cpu: str
    cores: int
    memory_gib: float
    vector: str  # the widest vector instructions of note
    load: float  # processes that wanted to run, averaged over the minute before
    python: str
    torch: str
    plait: str  # commit, with a + behind it when the work tree differs; installed: the version

    @property
    def slug(self) -> str:
        """A short name for files."""
        return re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")


def this_machine() -> Machine:
    """Describe where we are."""
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
    """Return the commit of the checkout this code lies in; empty if it lies in none."""
    head = _git("rev-parse", "--short", "HEAD")
    return head + "+" * bool(head and _git("status", "--porcelain", "--untracked-files=no"))


def code() -> str:
    """Return a hash of the sources that a measurement runs through.

    Two commits between which none of them changed measure the same.
    """
    digest = hashlib.blake2b(digest_size=12)
    for folder in _MEASURED:
        for path in sorted((_PROJECT / folder).rglob("*")):
            if path.suffix in _SOURCES:
                digest.update(f"{path.relative_to(_PROJECT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _field(info: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.M)
    return found[1].strip() if found else ""


def _git(*arguments: str) -> str:
    if not (_PROJECT / ".git").exists():  # installed: git would answer for what is around it
        return ""
    done = subprocess.run(["git", *arguments], cwd=_PROJECT, capture_output=True, check=False)
    return done.stdout.decode().strip()
