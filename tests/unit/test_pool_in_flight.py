"""One request in flight: joined deltas say the same, and errors come last."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import ContinuationScores, TokenLogprobs
from plait.server.errors import BadRequest, Internal, ServerError, Unavailable
from plait.server.pool.in_flight import InFlightRequest, coalesce, to_server_error
from plait.server.telemetry.metrics import Metrics
from plait.server.wire.messages import Delta, Failed, SearchResult, Started
from plait.server.workers.loop import failure
from tests.fixtures.pools import request, tokens_of

METRICS = Metrics().engine("m", "0")
STARTED = Started("r", cached_tokens=0, at=1.0)


def delta(index: int, token: int, finish: str | None = None) -> Delta:
    logprobs = [TokenLogprobs(token, -1.0)]
    return Delta("r", index, [token], logprobs, finish_reason=finish)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99))))
def test_joined_deltas_say_what_the_single_ones_said(pieces: list[tuple[int, int]]) -> None:
    events: list[Started | Delta] = [STARTED]
    events += [delta(index, token) for index, token in pieces]
    joined = coalesce(events)
    assert joined[0] == STARTED
    assert len(joined) == 1 + len({index for index, _ in pieces})
    for index in range(4):
        want = [token for i, token in pieces if i == index]
        assert tokens_of(joined, index) == want
        logprobs = [
            entry.token_id
            for event in joined
            if isinstance(event, Delta) and event.index == index
            for entry in event.logprobs or ()
        ]
        assert logprobs == want


def test_a_joined_delta_keeps_what_only_the_first_or_the_last_has() -> None:
    first = Delta("r", 0, [1], prompt_logprobs=[None])
    search, scores = SearchResult(-1.0, 0.0, 4, 80), ContinuationScores([-2.0])
    last = Delta(
        "r",
        0,
        [2],
        finish_reason="stop",
        stop_token=9,
        trace={"forwards": 2},
        search=search,
        scores=scores,
    )
    (have,) = coalesce([first, last])
    want = Delta(
        "r",
        0,
        [1, 2],
        finish_reason="stop",
        stop_token=9,
        prompt_logprobs=[None],
        trace={"forwards": 2},
        search=search,
        scores=scores,
    )
    assert have == want


async def test_waiting_events_come_before_the_error() -> None:
    call = InFlightRequest(request(0), METRICS)
    call.put(STARTED)
    call.put(delta(0, 5))
    call.fail(Unavailable("gone"))
    call.put(delta(0, 6))
    assert tokens_of(await call.take()) == [5]
    for _ in range(2):
        with pytest.raises(Unavailable):
            await call.take()


async def test_a_waiting_reader_is_woken() -> None:
    call = InFlightRequest(request(0), METRICS)
    reader = asyncio.create_task(call.take())
    await asyncio.sleep(0)
    call.put(delta(0, 5, "stop"))
    assert tokens_of(await reader) == [5]
    assert await call.take() == []


async def test_a_stopped_sequence_says_nothing_more() -> None:
    call = InFlightRequest(request(0, n=2), METRICS)
    call.stop(0)
    call.put(delta(0, 1))
    call.put(delta(1, 2, "length"))
    events = await call.take()
    assert (tokens_of(events, 0), tokens_of(events, 1)) == ([], [2])
    assert call.is_over
    assert call.finish_reasons == ["stop", "length"]


@pytest.mark.parametrize("error", [BadRequest("no", param="n"), Unavailable("later")])
def test_errors_survive_the_wire(error: ServerError) -> None:
    have = to_server_error(failure("r", error))
    assert (type(have), have.message, have.param) == (type(error), error.message, error.param)


def test_an_error_of_no_known_name_is_internal() -> None:
    for name in ("ZeroDivisionError", "ClassVar", ""):
        assert isinstance(to_server_error(Failed("r", name, "?")), Internal)
