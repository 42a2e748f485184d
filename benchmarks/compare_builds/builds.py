"""A checkout with a virtual environment of its own, and how its server is started."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import Command, NotInstalled


@dataclass(frozen=True, slots=True)
class Build:
    """One of the two that are compared."""

    name: str
    path: Path

    @property
    def executable(self) -> Path:
        """Its command line."""
        return self.path / ".venv" / "bin" / "plait"

    def command(self, arguments: Sequence[str]) -> Command:
        """Return how `plait serve` of this build is started."""
        if not self.executable.exists():
            raise NotInstalled(f"{self.executable} is missing: run `make dev` in {self.path}")
        argv = [str(self.executable), "serve", *arguments, "--port", "{port}"]
        return Command(argv, ready="/ready")

    @property
    def commit(self) -> str:
        """Its commit; "" where files differ from it, or there is none."""
        if self._git("status", "--porcelain", "--untracked-files=no"):
            return ""
        return self._git("rev-parse", "--short", "HEAD")

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.path, capture_output=True, check=False)
        return done.stdout.decode().strip()
