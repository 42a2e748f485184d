"""Where text becomes tokens: on threads, and no client at the cost of another.

Small texts go straight to a thread. Of large ones each API key has one at a time, and all together
leave half of the cores to others. A client that leaves gives its place up when the work has ended,
not before: threads can't be stopped.
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
SMALL_TEXT_CHARS = 2**15  # characters: some 40 ms


class TokenizationExecutor:
    """Lets work on text through to the threads. One per application."""

    def __init__(self, max_large: int | None = None) -> None:
        self._large = asyncio.Semaphore(max_large or max((os.cpu_count() or 1) // 2, 1))
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, tenant: str, size: int, work: Callable[[], Result]) -> Result:
        """Return what the work on a text of `size` characters returns, or raise what it raises."""
        if size <= SMALL_TEXT_CHARS:
            return await asyncio.to_thread(work)
        lock = self._locks.setdefault(tenant, asyncio.Lock())
        async with AsyncExitStack() as places:
            await places.enter_async_context(lock)
            await places.enter_async_context(self._large)
            task = asyncio.ensure_future(self._keep(places.pop_all(), work))
        return await asyncio.shield(task)

    async def _keep(self, places: AsyncExitStack, work: Callable[[], Result]) -> Result:
        """Do the work, then give the places back."""
        async with places:
            try:
                return await asyncio.to_thread(work)
            finally:
                await asyncio.to_thread(_return_memory)


def _return_memory() -> None:
    """Give what was freed back to the system: glibc keeps it, some 100 bytes for each of text."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
