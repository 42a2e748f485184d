"""Block tables: which KV blocks hold the tokens of one sequence, and in which cache slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plait.kernels import paged_attention

BLOCK_SIZE = paged_attention.BLOCK_SIZE  # tokens per KV block


@dataclass(slots=True)
class BlockTable:
    """The KV blocks of one sequence, in text order.

    Token t is stored in block_ids[t // BLOCK_SIZE].
    Only plait.server.engine.kv.manager changes it, because every listed block is one reference.
    """

    root: bytes = b""  # start of the sequence's hash chain (prefix_index.root_hash)
    hash_span: int = 1  # KV blocks whose tokens attend to each other (prefix_index.hash_span)
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of its first full blocks


def num_blocks_for(num_tokens: int) -> int:
    """Return how many blocks hold that many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def slot_mapping(block_ids: Sequence[int], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cache slot (block * BLOCK_SIZE + offset) of each position of a sequence, [n]."""
    blocks = np.asarray(block_ids, dtype=np.int64)[positions // BLOCK_SIZE]
    return blocks * BLOCK_SIZE + positions % BLOCK_SIZE
