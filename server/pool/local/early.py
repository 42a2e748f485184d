"""A native worker that is started before it is known what it shall serve.

It imports torch and the engine while the front end imports its own libraries, and reads its
settings only then: side by side, a server is ready a second earlier.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

# -P: nothing is imported from the folder that the server was started in.
NATIVE_WORKER_COMMAND = (sys.executable, "-P", "-m", "plait.server.workers.native")
# What says that no worker will be needed, or one with another environment.
_OTHERWISE = ("-h", "--help", "--threads", "--config", "--worker", "--pool")
_VARIABLES = frozenset({"PLAIT_THREADS", "PLAIT_CONFIG", "PLAIT_WORKER", "PLAIT_POOL"})

_started: list[subprocess.Popen[bytes]] = []  # one or none


def is_wanted(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Tell whether a command line will start a native worker with the default number of threads."""
    names = {argument.partition("=")[0] for argument in arguments}
    is_otherwise = names.intersection(_OTHERWISE) or environment.keys() & _VARIABLES
    return arguments[:1] == ["serve"] and not is_otherwise


def start(command: Sequence[str] = NATIVE_WORKER_COMMAND) -> None:
    """Start a worker, unless that is impossible; it waits for its settings on its input."""
    with suppress(OSError):  # the pool tries again, and tells of it
        _started.append(spawn(command, 0))


def spawn(command: Sequence[str], threads: int) -> subprocess.Popen[bytes]:
    """Start a worker in a process group of its own. Raises OSError if that is impossible."""
    is_native = tuple(command) == NATIVE_WORKER_COMMAND
    environment = child_environment(os.environ, threads, sleeps=is_native)
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def take(command: Sequence[str], threads: int) -> subprocess.Popen[bytes] | None:
    """Return the worker, if it runs and was started as this one would be: now the caller's."""
    if not _started or tuple(command) != NATIVE_WORKER_COMMAND:
        return None
    if threads or _started[0].poll() is not None:
        drop()
        return None
    return _started.pop()


def drop() -> None:
    """End a worker that nobody has taken."""
    while _started:
        process = _started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def child_environment(
    parent: Mapping[str, str], threads: int, *, sleeps: bool = True
) -> dict[str, str]:
    """Return a worker's environment: the parent's without plait's own, which may hold API keys.

    Args:
        parent: this process's environment; what the operator has set is kept.
        threads: of OpenMP; 0: its own choice.
        sleeps: OpenMP's threads sleep while they wait: spinning, they take the cores from the front
            end. Waking them takes too long for an engine that calls them hundreds of times a step.
    """
    environment = {k: v for k, v in parent.items() if not k.upper().startswith("PLAIT_")}
    if sleeps:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
