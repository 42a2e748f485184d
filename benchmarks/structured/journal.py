"""Judged schemas as JSON lines, so that a long run goes on where it was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.structured.suite import JudgedCase


@dataclass(frozen=True, slots=True)
class Entry:
    """One schema before one engine; what another version of the code found does not count."""

    version: str
    corpus: str
    engine: str
    number: int
    case: JudgedCase


class Journal:
    """What has been judged by one version of the code; without a path nothing is kept."""

    def __init__(self, path: Path | None, version: str) -> None:
        self._path, self._version = path, version
        self._entries: list[Entry] = []
        if path is not None and path.exists():
            lines = path.read_bytes().splitlines()
            self._entries = [msgspec.json.decode(line, type=Entry) for line in lines]

    def found(self, corpus: str, engine: str) -> dict[int, JudgedCase]:
        """Return what is known of a corpus, by the numbers of its schemas."""
        return {
            each.number: each.case
            for each in self._entries
            if (each.version, each.corpus, each.engine) == (self._version, corpus, engine)
        }

    def add(self, corpus: str, engine: str, number: int, case: JudgedCase) -> None:
        """Write down what an engine made of a schema."""
        if self._path is None:
            return
        entry = Entry(self._version, corpus, engine, number, case)
        with self._path.open("ab") as lines:
            lines.write(msgspec.json.encode(entry) + b"\n")
