"""The way to the tokenizers: small texts pass, a key has one large text at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from plait.server.api.requests.tokenization import SMALL_TEXT_CHARS, TokenizationExecutor

LARGE = SMALL_TEXT_CHARS + 1


class Work:
    """Work on a thread that ends when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.end.wait(30)
        return "done"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def settle() -> None:
    """Let every task run as far as it gets by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_small_texts_do_not_wait_for_large_ones() -> None:
    gate, large = TokenizationExecutor(1), Work()
    running = asyncio.create_task(gate.run("a", LARGE, large))
    await until(large.begun.is_set)
    assert await gate.run("a", SMALL_TEXT_CHARS, lambda: "small") == "small"
    large.end.set()
    assert await running == "done"


async def test_a_key_has_one_large_text_at_a_time_and_others_pass_it() -> None:
    gate = TokenizationExecutor(2)
    first, second, other = Work(), Work(), Work()
    tasks = [asyncio.create_task(gate.run("a", LARGE, work)) for work in (first, second)]
    await until(first.begun.is_set)
    tasks.append(asyncio.create_task(gate.run("b", LARGE, other)))
    await until(other.begun.is_set)
    assert not second.begun.is_set()
    for work in (first, second, other):
        work.end.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3


async def test_a_client_that_leaves_keeps_its_place_until_the_work_has_ended() -> None:
    gate = TokenizationExecutor(1)
    first, second = Work(), Work()
    left = asyncio.create_task(gate.run("a", LARGE, first))
    await until(first.begun.is_set)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    waiting = asyncio.create_task(gate.run("a", LARGE, second))
    await settle()
    assert not second.begun.is_set()
    first.end.set()
    second.end.set()
    assert await waiting == "done"


async def test_a_client_that_leaves_the_queue_frees_it() -> None:
    gate = TokenizationExecutor(1)
    first, third = Work(), Work()
    running = asyncio.create_task(gate.run("a", LARGE, first))
    await until(first.begun.is_set)
    queued = asyncio.create_task(gate.run("b", LARGE, Work()))
    await settle()
    queued.cancel()
    await asyncio.gather(queued, return_exceptions=True)
    first.end.set()
    third.end.set()
    assert await gate.run("b", LARGE, third) == await running == "done"


async def test_what_the_work_raises_is_raised_and_frees_its_place() -> None:
    gate = TokenizationExecutor(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await gate.run("a", LARGE, lambda: str(1 // 0))
