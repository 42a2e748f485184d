"""Answers of servers as JSON lines, so that a long run goes on where it was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.structured.coverage import Attempt


@dataclass(frozen=True, slots=True)
class Plan:
    """How many requests are sent, and with what."""

    outputs: int
    streams: int
    max_tokens: int
    temperature: float
    seed: int
    timeout_s: float
    is_alone: bool = True  # the first request of each schema


@dataclass(frozen=True, slots=True)
class Entry:
    """One request to a server; what another version of it answered does not count."""

    server: str  # with its version and model
    plan: Plan
    attempt: Attempt


class Answers:
    """What a server has answered to the requests of a plan; without a path nothing is kept."""

    def __init__(self, path: Path | None, server: str, plan: Plan) -> None:
        self._path, self._server, self._plan = path, server, plan
        self._known: dict[int, Attempt] = {}
        if path is not None and path.exists():
            entries = (
                msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()
            )
            self._known = {
                each.attempt.index: each.attempt
                for each in entries
                if (each.server, each.plan) == (server, plan)
            }

    def find(self, number: int, schema: str) -> Attempt | None:
        """Return what came of a request, if that is known and it was for this schema."""
        found = self._known.get(number)
        return found if found is not None and found.schema == schema else None

    def add(self, attempt: Attempt) -> None:
        """Write down what came of a request."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as lines:
            entry = Entry(self._server, self._plan, attempt)
            lines.write(msgspec.json.encode(entry) + b"\n")
