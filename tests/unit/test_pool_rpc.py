"""The wire: everything arrives, in order, and no report is overlooked."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from plait.decoders.contract.decoder import TokenLogprobs
from plait.decoders.contract.decoding import (
    DecodingSpec,
    DiffusionMethods,
    MethodSpec,
    PromptExtras,
)
from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.address import Address
from plait.server.wire.channel import PoolChannel, SendError, WorkerChannel
from plait.server.wire.counters import EngineCounters, SpeculationCounters
from plait.server.wire.messages import (
    Abort,
    Batch,
    CompiledConstraint,
    Delta,
    GenerateRequest,
    Report,
    Shutdown,
    Started,
    Stats,
)

COUNTERS = EngineCounters(
    steps=5,
    token_trace_lost=0,
    speculation=SpeculationCounters(2, {"n-gram": 7}, {"n-gram": 3}, {0: 2, 10: 1}),
)
STATS = Stats(1, 2, 3, 4, COUNTERS, [6, 7])


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    made = zmq.asyncio.Context()
    yield made
    made.destroy(linger=0)


async def connected(end: PoolChannel, worker: WorkerChannel) -> None:
    """Exchange one message each way."""
    worker.send(STATS)
    await end.receive()
    end.send(Shutdown())
    assert worker.receive(5) == [Shutdown()]


def _at_zero(message: Any) -> Any:
    """Return a message without its instants, which the codec moves: see test_wire_codec.py."""
    if isinstance(message, GenerateRequest):
        assert message.deadline == pytest.approx(1.5, abs=1.0)
        return msgspec.structs.replace(message, deadline=0.0, arrived=0.0)
    if isinstance(message, Batch) and isinstance(first := message.reports[0], Started):
        assert first.at == pytest.approx(1.0, abs=1.0)
        return Batch([Started(first.request_id, first.cached_tokens, 0.0), *message.reports[1:]])
    return message


async def test_messages_arrive_as_they_were(context: zmq.asyncio.Context, tmp_path: Path) -> None:
    sampling = SamplingParams(logit_bias={7: -1.5}, bad_words=((1, 2), (3,)), seed=2**64 - 1)
    request = GenerateRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        sampling=sampling,
        max_tokens=5,
        constraint=CompiledConstraint("key", b"\x00\xff", 1),
        deadline=1.5,
        decoding=DecodingSpec(
            DiffusionMethods((MethodSpec("static", {"tokens_per_step": 2}),), "block", 8),
            MethodSpec("best-of", {"of": 4}),
            trace=True,
        ),
        extras=PromptExtras([1], [2, 3], [(4, 5)]),
    )
    entry = TokenLogprobs(1, -0.5, ((1, -0.5), (2, -1.0)))
    delta = Delta("r", 0, [1], [entry], "stop", prompt_logprobs=[None, entry])
    reports: list[Report] = [STATS, Batch([Started("r", 0, 1.0), delta])]
    end = PoolChannel(context, Address("ipc", str(tmp_path / "s")))
    with WorkerChannel(Address("ipc", str(tmp_path / "s"))) as worker:
        await connected(end, worker)
        for command in (request, Abort("r", 1), Abort("r")):
            end.send(command)
        have = worker.receive(5)
        while len(have) < 3:
            have += worker.receive(5)
        assert [_at_zero(each) for each in have] == [_at_zero(request), Abort("r", 1), Abort("r")]
        for report in reports:
            worker.send(report)
        assert [_at_zero(await end.receive()) for _ in reports] == [_at_zero(r) for r in reports]
    end.close()


async def test_a_send_does_not_swallow_the_news_of_a_report(
    context: zmq.asyncio.Context, tmp_path: Path
) -> None:
    end = PoolChannel(context, Address("ipc", str(tmp_path / "s")))
    with WorkerChannel(Address("ipc", str(tmp_path / "s"))) as worker:
        await connected(end, worker)
        receiving = asyncio.ensure_future(end.receive())
        await asyncio.sleep(0)
        worker.send(STATS)
        announcement = [int(end._socket.get(zmq.FD))]
        select.select(announcement, [], [], 5)
        while select.select(announcement, [], [], 0)[0]:  # a send takes it down at most each 1 ms
            end.send(Abort("r"))
        async with asyncio.timeout(5):
            assert await receiving == STATS
    end.close()


async def test_sending_to_nobody_says_so(context: zmq.asyncio.Context, tmp_path: Path) -> None:
    end = PoolChannel(context, Address("ipc", str(tmp_path / "s")))
    with pytest.raises(SendError):
        end.send(Shutdown())
    end.close()


def test_receive_returns_when_nothing_comes(tmp_path: Path) -> None:
    with WorkerChannel(Address("ipc", str(tmp_path / "s"))) as worker:
        assert worker.receive(0.001) == []
