"""What searches keep for later requests that are alike, of one namespace and one model each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec

from plait.decoders.contract.search import Kept, Recall
from plait.server.wire.messages import GenerateRequest

MAX_BYTES = 64 * 2**20


class SearchMemory:
    """The memory of one engine: at most MAX_BYTES, by the entries' own estimates.

    When it is full, what was used least recently is forgotten; requests that use it keep it. An
    entry that grows is counted when the memory is next asked.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[bytes, Any] = {}  # the least recently used first

    @property
    def num_bytes(self) -> int:
        """What all entries take."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def of(self, request: GenerateRequest) -> Recall:
        """Return the part of the memory that requests like this one share."""
        return partial(self._recall, request)

    def _recall(self, request: GenerateRequest, name: str, make: Callable[[], Kept], /) -> Kept:
        key = _key(request, name)
        found: Kept = self._entries.pop(key) if key in self._entries else make()
        self._entries[key] = found
        while len(self._entries) > 1 and self.num_bytes > self._max_bytes:
            del self._entries[next(iter(self._entries))]
        return found


def _key(request: GenerateRequest, name: str) -> bytes:
    """Return a hash of all that the law of a request's texts depends on, and of its namespace."""
    constraint = request.constraint
    parts = (
        name,
        request.cache_salt,
        request.prompt_token_ids,
        replace(request.sampling, seed=0, logprobs=None, logprob_token_ids=()),
        request.max_tokens,
        request.stop_token_ids,
        None if constraint is None else msgspec.structs.replace(constraint, table=b""),
        request.decoding.methods,
        request.extras,
    )
    return blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest()
