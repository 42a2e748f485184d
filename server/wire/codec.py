"""Messages as bytes: MessagePack by msgspec, in one place for both directions.

A message in memory holds instants of its own process's clock (time.monotonic()); the clocks of two
processes need not agree. On the wire it holds durations, relative to the moment of sending, and the
sender's clock at that moment. From the latter the receiver estimates how long a message has waited
to be read, which may be a whole engine step, and takes that off.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from plait.server.wire.messages import (
    Batch,
    Command,
    Delta,
    Failed,
    GenerateRequest,
    Report,
    Started,
)

Clock = Callable[[], float]
Message = TypeVar("Message", bound=msgspec.Struct)

SENT_AT = struct.Struct("<d")  # the header: the sender's clock, in seconds
# A minimum counts for one to two such windows; clocks that drift by 100 ppm move 12 ms meanwhile.
WINDOW_S = 60.0

_encoder = msgspec.msgpack.Encoder()


def encode(message: Command | Report, clock: Clock = time.monotonic) -> bytes:
    """Return a message as it travels."""
    now = clock()
    return SENT_AT.pack(now) + _encoder.encode(_shift(message, -now))


class QueueDelay:
    """How long messages of one sender wait before they are read.

    The receiver's clock minus the sender's, at one message, is the difference of the clocks plus
    the delay. The smallest such value of the last minute or two stands for no delay at all.
    Law: whatever the two clocks show, a message that waited d seconds longer than the fastest one
    gets d.
    """

    def __init__(self) -> None:
        self._least = self._least_before = float("inf")
        self._window_end = float("-inf")

    def of(self, sent_at: float, now: float) -> float:
        """Return the delay of a message, in seconds; the sender's clock and ours are given."""
        if now >= self._window_end:
            is_recent = now < self._window_end + WINDOW_S
            self._least_before = self._least if is_recent else float("inf")
            self._least = float("inf")
            self._window_end = now + WINDOW_S
        self._least = min(self._least, now - sent_at)
        return now - sent_at - min(self._least, self._least_before)


class MessageDecoder(Generic[Message]):
    """Decodes the messages of one sender, in the order of their arrival."""

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[Message], clock: Clock = time.monotonic
    ) -> None:
        self._decoder = decoder
        self._clock = clock
        self._delay = QueueDelay()

    def decode(self, data: bytes) -> Message:
        """Return a message with instants of this process's clock."""
        now = self._clock()
        (sent_at,) = SENT_AT.unpack_from(data)
        message = self._decoder.decode(memoryview(data)[SENT_AT.size :])
        return _shift(message, now - self._delay.of(sent_at, now))


def command_decoder(clock: Clock = time.monotonic) -> MessageDecoder[Command]:
    """Return a worker's decoder."""
    return MessageDecoder(msgspec.msgpack.Decoder(Command), clock)


def report_decoder(clock: Clock = time.monotonic) -> MessageDecoder[Report]:
    """Return the pool's decoder for one worker."""
    return MessageDecoder(msgspec.msgpack.Decoder(Report), clock)


def _shift(message: Message, seconds: float) -> Message:
    """Return a copy with instants moved by `seconds`; the message itself if it has none."""
    if isinstance(message, GenerateRequest):
        deadline = None if message.deadline is None else message.deadline + seconds
        return msgspec.structs.replace(
            message, deadline=deadline, arrived=message.arrived + seconds
        )
    if isinstance(message, Batch) and Started in map(type, message.reports):
        return msgspec.structs.replace(
            message, reports=[_shift_report(each, seconds) for each in message.reports]
        )
    return message


def _shift_report(report: Started | Delta | Failed, seconds: float) -> Started | Delta | Failed:
    if isinstance(report, Started):
        return msgspec.structs.replace(report, at=report.at + seconds)
    return report
