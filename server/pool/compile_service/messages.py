"""What travels between the compile service, its fork server and the processes that compile.

Length-prefixed MessagePack on Unix stream sockets. The control socket carries Boot and Ready, then
Start (with one end of the job's own socket as ancillary data), Kill and Ended; the job's socket
carries the Job there and Done or Refused back.
"""

from __future__ import annotations

import msgspec

from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.server.wire.messages import CompiledConstraint

HEADER_BYTES = 4  # little-endian length before each message
NOT_STARTED = 256  # Ended.returncode where no process could be made; no process can exit with it


class ModelVocabulary(msgspec.Struct, frozen=True):
    """What a model's tokens add to a text."""

    name: str
    token_bytes: list[bytes]
    eos_token_ids: list[int]


class ForkServerConfig(msgspec.Struct, frozen=True, tag="boot"):
    """The fork server's first message."""

    models: list[ModelVocabulary]
    limits: ConstraintLimits
    memory_bytes: int


class ForkServerReady(msgspec.Struct, frozen=True, tag="ready"):
    """The fork server's answer to Boot."""


class StartJob(msgspec.Struct, frozen=True, tag="start"):
    """Fork a process for a job, which it reads from the socket that comes along."""

    job_id: int
    cpu_s: float  # the process is killed once it has used so much
    niceness: int = 0


class KillJob(msgspec.Struct, frozen=True, tag="kill"):
    """End a job's process."""

    job_id: int


class JobEnded(msgspec.Struct, frozen=True, tag="ended"):
    """A job's process has ended."""

    job_id: int
    returncode: int  # negative: the signal that killed it; NOT_STARTED: there was none
    cpu_s: float


class CompileJob(msgspec.Struct, frozen=True):
    """Compile this for that model."""

    model: str
    spec: ConstraintSpec


class CompileDone(msgspec.Struct, frozen=True, tag="done"):
    """The compile has succeeded."""

    constraint: CompiledConstraint


class CompileRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The constraint's author must change it."""

    message: str


CompileResult = CompileDone | CompileRefused
ToServer = ForkServerConfig | StartJob | KillJob
FromServer = ForkServerReady | JobEnded

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """Return a message as it stands on a socket."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body
