"""The codec: each process has a clock of its own; time that a message waits is not lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.codec import WINDOW_S, QueueDelay, command_decoder, encode, report_decoder
from plait.server.wire.messages import Abort, Batch, Delta, GenerateRequest, Started


class Clock:
    """A clock that shows real time and an offset."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.time = 0.0

    def __call__(self) -> float:
        return self.time + self.offset


def _request(arrived: float, deadline: float | None) -> GenerateRequest:
    return GenerateRequest("r", [1], SamplingParams(), 3, arrived=arrived, deadline=deadline)


@given(
    offsets=st.tuples(*[st.floats(-1e6, 1e6)] * 2),
    delays=st.lists(st.floats(0, 5), min_size=1, max_size=20),
)
def test_instants_mean_the_same_moment_on_both_clocks(
    offsets: tuple[float, float], delays: list[float]
) -> None:
    """Law: whatever the clocks show and however long each message waits to be read, once one was
    read without waiting, instants are those of the receiver's clock at the same moment."""
    sender, receiver = (Clock(offset) for offset in offsets)
    decoder = command_decoder(receiver)
    for i, delay in enumerate([0.0, *delays]):
        sender.time = float(i)
        arrived, left = sender() - 0.25, sender() + 2.0
        data = encode(_request(arrived, left), sender)
        receiver.time = i + delay
        have = decoder.decode(data)
        assert isinstance(have, GenerateRequest)
        assert have.arrived == pytest.approx(i - 0.25 + receiver.offset, abs=1e-6)
        assert have.deadline == pytest.approx(i + 2.0 + receiver.offset, abs=1e-6)


def test_order_of_arrival_survives_a_wait_for_a_long_step() -> None:
    """Two requests read at once: the one that was sent first is still the older one."""
    sender, receiver = Clock(0.0), Clock(-500.0)
    decoder = command_decoder(receiver)
    decoder.decode(encode(Abort("x"), sender))
    sender.time = 1.0
    first = encode(_request(sender(), None), sender)
    sender.time = 1.4
    second = encode(_request(sender() - 0.1, None), sender)
    receiver.time = 1.5
    older, younger = decoder.decode(first), decoder.decode(second)
    assert isinstance(older, GenerateRequest) and isinstance(younger, GenerateRequest)
    assert younger.arrived - older.arrived == pytest.approx(0.3)
    assert older.deadline is None


def test_started_is_told_in_the_pools_clock() -> None:
    worker, pool = Clock(7.0), Clock(3000.0)
    decoder = report_decoder(pool)
    decoder.decode(encode(Batch([]), worker))
    batch = Batch([Started("r", 5, worker() - 0.5), Delta("r", 0, [1])])
    assert decoder.decode(encode(batch, worker)) == Batch(
        [Started("r", 5, 2999.5), batch.reports[1]]
    )
    assert batch.reports[0] == Started("r", 5, 6.5), "the sender's message has changed"


def test_a_drifting_clock_is_followed() -> None:
    """Half an hour, a message a second, at 100 ppm: the error is bounded, it does not add up."""
    delay = QueueDelay()
    for second in range(1800):
        have = delay.of(sent_at=float(second), now=second * 1.0001)
        assert 0.0 <= have <= 2 * WINDOW_S * 1e-4 + 1e-9


def test_after_a_long_silence_the_old_minimum_counts_no_longer() -> None:
    delay = QueueDelay()
    assert delay.of(0.0, 0.0) == 0.0
    assert delay.of(3600.0, 3600.5) == 0.0
