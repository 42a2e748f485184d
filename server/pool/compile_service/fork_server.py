"""The fork server of the compile service; each child process that it forks does one job.

Started by client.py; standard input is the control socket, and when that closes, this process and
its children end. Vocabularies and libraries are loaded once, so a fork costs milliseconds. The fork
server has one thread and only forks and waits.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from plait.decoders.constrained.compile import compile_constraint, prepare
from plait.decoders.constrained.spec import (
    ConstraintError,
    content_key,
    vocabulary_fingerprint,
)
from plait.decoders.constrained.vocabulary import Vocabulary, make_vocabulary
from plait.server.memory import return_freed_memory
from plait.server.pool.compile_service.messages import (
    HEADER_BYTES,
    NOT_STARTED,
    CompileDone,
    CompileJob,
    CompileRefused,
    ForkServerConfig,
    ForkServerReady,
    JobEnded,
    KillJob,
    ModelVocabulary,
    StartJob,
    ToServer,
    frame,
)
from plait.server.wire.messages import CompiledConstraint

OOM_SCORE = 500  # when memory runs out, the kernel kills a compile before it kills the server
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_commands: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)


class JobCompiler:
    """Compiles one job; holds the vocabularies of the served models and the limits."""

    def __init__(self, config: ForkServerConfig) -> None:
        prepare()
        self._limits = config.limits
        self._vocabularies = {model.name: _prepare(model) for model in config.models}
        self._fingerprints = {
            name: vocabulary_fingerprint(v.token_bytes, v.eos_token_ids)
            for name, v in self._vocabularies.items()
        }

    def run(self, job: CompileJob) -> CompileDone | CompileRefused:
        """Compile one constraint, until the kernel ends the process at its deadline."""
        try:
            done = compile_constraint(job.spec, self._vocabularies[job.model], self._limits)
        except ConstraintError as error:
            return CompileRefused(str(error))
        except RecursionError:
            return CompileRefused("it is nested too deeply")
        except MemoryError:
            return CompileRefused("it does not compile within the memory limit")
        key = content_key(job.spec, self._limits, self._fingerprints[job.model])
        return CompileDone(
            CompiledConstraint(key, done.table, done.min_tokens, done.checked, done.ignored)
        )


def _prepare(model: ModelVocabulary) -> Vocabulary:
    vocabulary = make_vocabulary(model.token_bytes, model.eos_token_ids)
    vocabulary.prepare()
    return vocabulary


@dataclass(frozen=True, slots=True)
class ForkedJob:
    """What a forked child has to do."""

    link: int  # file descriptor of the job's socket
    cpu_s: float
    niceness: int
    parent: int  # process id of the fork server


@dataclass(frozen=True, slots=True)
class JobProcess:
    """A child, as the fork server sees it."""

    job_id: int
    pid: int


class ForkServer:
    """Forks a child for each StartJob, and reports how each ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, JobProcess] = {}  # by pidfd: readable once the child ends
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> ForkedJob | None:
        """Return in each child its job, and None in this process once the control socket closes."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                command, link = _receive(self._control)
                if command is None:
                    self._end()
                    return None
                if isinstance(command, KillJob):
                    self._kill(command.job_id)
                elif isinstance(command, StartJob) and (forked := self._fork(command, link)):
                    return forked

    def _fork(self, start: StartJob, link: int) -> ForkedJob | None:
        """Return the job in the child, None in this process."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(link)
            self._send_ended(JobEnded(start.job_id, NOT_STARTED, 0.0))
            return None
        if pid == 0:
            self._control.close()
            for descriptor in self._children:
                os.close(descriptor)
            return ForkedJob(link, start.cpu_s, start.niceness, parent)
        os.close(link)
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = JobProcess(start.job_id, pid)
        self._poll.register(descriptor, select.POLLIN)
        return None

    def _reap(self, descriptor: int) -> None:
        child = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status, used = os.wait4(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._send_ended(JobEnded(child.job_id, code, used.ru_utime + used.ru_stime))

    def _kill(self, job_id: int) -> None:
        """Kill a job's child if it runs; only this process reaps it, so the id is not reused."""
        for child in self._children.values():
            if child.job_id == job_id:
                os.kill(child.pid, signal.SIGKILL)

    def _end(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
        for child in self._children.values():
            os.waitpid(child.pid, 0)

    def _send_ended(self, message: JobEnded) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the next read notices
            self._control.sendall(frame(message))


def _receive(control: socket.socket) -> tuple[ToServer | None, int]:
    """Return a command (None: the socket has closed) and its file descriptor (-1: none)."""
    header, descriptors = _read(control, HEADER_BYTES)
    if not header:
        return None, -1
    body, _ = _read(control, int.from_bytes(header, "little"))
    return _commands.decode(body), descriptors[0] if descriptors else -1


def _read(link: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Return exactly `size` bytes and the descriptors with them; b"" if the socket closes first."""
    data, descriptors = bytearray(), []
    while len(data) < size:
        piece, more, _, _ = socket.recv_fds(link, size - len(data), 1)
        descriptors += more
        if not piece:
            return b"", descriptors
        data += piece
    return bytes(data), descriptors


def cap_memory(extra_bytes: int) -> None:
    """Limit the address space to its present size plus extra_bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run_job(forked: ForkedJob, compiler: JobCompiler, memory_bytes: int) -> NoReturn:
    """Read the job, compile it, send the result, and end.

    The deadline is a timer of this process's CPU time (user and system): the kernel ends the
    process with SIGPROF, in whatever library it is. Load on the machine does not shorten it.
    """
    die_with_parent(forked.parent)
    os.nice(forked.niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    cap_memory(memory_bytes)
    gc.disable()  # one compile leaves little garbage, and looking for it takes a tenth of the time
    signal.setitimer(signal.ITIMER_PROF, forked.cpu_s)
    with socket.socket(fileno=forked.link) as link:
        header, _ = _read(link, HEADER_BYTES)
        if header:
            body, _ = _read(link, int.from_bytes(header, "little"))
            answer = frame(compiler.run(msgspec.msgpack.decode(body, type=CompileJob)))
            with suppress(BrokenPipeError, ConnectionResetError):  # the service has given up
                link.sendall(answer)
    os._exit(0)


def main(make_compiler: Callable[[ForkServerConfig], JobCompiler] = JobCompiler) -> None:
    """Serve until the control socket closes."""
    control = socket.socket(fileno=sys.stdin.fileno())
    config, _ = _receive(control)
    if not isinstance(config, ForkServerConfig):
        return
    compiler = make_compiler(config)
    memory_bytes = config.memory_bytes
    del config
    try:
        control.sendall(frame(ForkServerReady()))
    except (BrokenPipeError, ConnectionResetError):  # the server has stopped meanwhile
        return
    gc.collect()
    return_freed_memory()
    gc.freeze()  # otherwise a child's first collection would touch, and so copy, every page
    forked = ForkServer(control).serve()
    if forked is not None:
        run_job(forked, compiler, memory_bytes)


if __name__ == "__main__":
    main()
