"""An engine in a process of its own, which can be killed: some schemas crash or never end."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal

from benchmarks.structured.engines import Compiler, NoValue, Refused

MEMORY_BYTES = 4 * 2**30  # of one engine, apart from the files that it maps
START_S, STOP_S = 120.0, 10.0

# empty: it has no valid value, says the engine; failed: it crashed or took too long
Outcome = Literal["accepted", "refused", "empty", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine made of a schema and some texts."""

    outcome: Outcome
    reason: str = ""  # why it is not accepted
    matched: Sequence[bool] = ()  # by text
    compile_s: float = field(default=0.0, compare=False)  # CPU time; 0 where it failed


def judge(compile_schema: Compiler, schema: str, texts: Sequence[bytes | None]) -> Verdict:
    """Compile a schema and match texts; None stands for one that can't be written."""
    began = time.process_time()
    try:
        is_legal = compile_schema(schema)
        verdict = Verdict("accepted")
    except NoValue as reason:
        verdict = Verdict("empty", str(reason), [False] * len(texts))
    except Refused as reason:
        verdict = Verdict("refused", str(reason))
    verdict = replace(verdict, compile_s=time.process_time() - began)
    if verdict.outcome != "accepted":
        return verdict
    return replace(verdict, matched=[text is not None and is_legal(text) for text in texts])


class IsolatedEngine:
    """Judges schemas in another process, which begins anew after a schema that it fails on."""

    def __init__(self, make: Callable[[], Compiler], deadline_s: float) -> None:
        self._make = make
        self._deadline_s = deadline_s
        self._start()

    def __enter__(self) -> IsolatedEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def judge(self, schema: str, texts: Sequence[bytes | None]) -> Verdict:
        """Return the verdict on a schema; "failed" where none came within the deadline."""
        try:
            self._pipe.send((schema, texts))
            if self._pipe.poll(self._deadline_s):
                verdict: Verdict = self._pipe.recv()
                return verdict
            reason = f"no verdict within {self._deadline_s:g} s"
        except (EOFError, OSError):
            self._process.join(STOP_S)
            reason = f"its process ended with {self._process.exitcode}"
        self._stop()
        self._start()
        return Verdict("failed", reason)

    def _start(self) -> None:
        """Start the process and wait until its engine is made.

        Raises:
            EOFError: it ended before that.
        """
        spawning = get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs, self._make), daemon=True)
        self._process.start()
        theirs.close()  # or its end would not be seen here
        if not self._pipe.poll(START_S):
            raise EOFError(f"the engine was not made within {START_S:g} s")
        self._pipe.recv()

    def _stop(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join(STOP_S)


def _serve(pipe: Connection, make: Callable[[], Compiler]) -> None:
    """Judge what comes through the pipe until its other end is closed."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, most))
    compile_schema = make()
    pipe.send(None)
    while True:
        try:
            schema, texts = pipe.recv()
        except EOFError:
            return
        pipe.send(judge(compile_schema, schema, texts))
