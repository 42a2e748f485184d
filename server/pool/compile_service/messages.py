"""The messages between the compile service, its fork server and the processes that compile.

Length-prefixed MessagePack on Unix stream sockets. The control socket carries ForkServerConfig and
ForkServerReady, then StartJob (with one end of the job's own socket as ancillary data), KillJob and
JobEnded. The job's socket carries the CompileJob to the process and the CompileResult back.
"""

from __future__ import annotations

import msgspec

from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.server.wire.messages import CompiledConstraint

HEADER_BYTES = 4  # little-endian length before each message
NOT_STARTED = 256  # Ended.returncode where no process could be made; no process can exit with it


class ModelVocabulary(msgspec.Struct, frozen=True):
    """The tokens of one model, as bytes."""

    name: str
    token_bytes: list[bytes]
    eos_token_ids: list[int]


class ForkServerConfig(msgspec.Struct, frozen=True, tag="config"):
    """The fork server's first message."""

    models: list[ModelVocabulary]
    limits: ConstraintLimits
    memory_bytes: int


class ForkServerReady(msgspec.Struct, frozen=True, tag="ready"):
    """The fork server has loaded everything and can fork."""


class StartJob(msgspec.Struct, frozen=True, tag="start"):
    """Fork a process, which reads its job from the socket that comes with this message."""

    job_id: int
    cpu_s: float  # CPU time after which the process is killed
    niceness: int = 0


class KillJob(msgspec.Struct, frozen=True, tag="kill"):
    """Kill a job's process."""

    job_id: int


class JobEnded(msgspec.Struct, frozen=True, tag="ended"):
    """A job's process has ended."""

    job_id: int
    returncode: int  # negative: the signal that killed it; NOT_STARTED: it could not be forked
    cpu_s: float


class CompileJob(msgspec.Struct, frozen=True):
    """A constraint to be compiled for a model."""

    model: str
    spec: ConstraintSpec


class CompileDone(msgspec.Struct, frozen=True, tag="done"):
    """The compile has succeeded."""

    constraint: CompiledConstraint


class CompileRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The constraint can't be compiled; its author has to change it."""

    message: str


CompileResult = CompileDone | CompileRefused
ToServer = ForkServerConfig | StartJob | KillJob
FromServer = ForkServerReady | JobEnded

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """Return a message with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body
