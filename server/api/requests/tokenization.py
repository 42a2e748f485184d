"""Runs tokenization on threads, so that no client slows down another.

Small texts go to a thread at once. Of large texts, each API key has one at a time, and all keys
together use at most half of the cores. When a client disconnects, its place stays taken until the
work has ended, because threads can't be stopped.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar
from weakref import WeakValueDictionary

Result = TypeVar("Result")
SMALL_TEXT_CHARS = 2**15  # tokenized in some 40 ms


class TokenizationExecutor:
    """Runs work on texts on threads, with limits. One per application."""

    def __init__(self, max_large: int | None = None) -> None:
        self._large = asyncio.Semaphore(max_large or max((os.cpu_count() or 1) // 2, 1))
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, tenant: str, size: int, work: Callable[[], Result]) -> Result:
        """Run the work on a text of `size` characters on a thread; return its result."""
        if size <= SMALL_TEXT_CHARS:
            return await asyncio.to_thread(work)
        lock = self._locks.setdefault(tenant, asyncio.Lock())
        async with AsyncExitStack() as places:
            await places.enter_async_context(lock)
            await places.enter_async_context(self._large)
            task = asyncio.ensure_future(self._keep(places.pop_all(), work))
        return await asyncio.shield(task)

    async def _keep(self, places: AsyncExitStack, work: Callable[[], Result]) -> Result:
        """Run the work, then release the places."""
        async with places:
            try:
                return await asyncio.to_thread(work)
            finally:
                await asyncio.to_thread(_return_memory)


def _return_memory() -> None:
    """Return freed memory to the system: glibc keeps some 100 bytes for each byte of text."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
