"""A draft model over a paged cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.decoders.contract.decoder import AttentionMode
from plait.decoders.speculative.draft_model.protocol import DraftCache
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.engine.kv.block_pool import BlockPool
from plait.server.engine.kv.block_table import BLOCK_SIZE, num_blocks_for
from plait.server.engine.kv.prefix_index import extend_block_hashes, root_hash
from plait.server.engine.runner import AttentionSegment, RunnableModel, segments_of
from plait.server.models.transformer import KVCache


class SuperposableModel(RunnableModel, Protocol):
    """A model whose rows may be sums of tokens (plait.server.models.transformer.Transformer)."""

    def superpose(
        self, token_ids: Tensor, weights: Tensor, metadata: AttentionMetadata, kv: KVCache
    ) -> Tensor:
        """Return hidden states [rows, hidden] of the rows that [rows, k] tokens make together."""


class CachedDraftModel:
    """Feeds texts to a model and keeps them, as far as its blocks reach; see DraftModel.

    Whole blocks of settled text stay known after a cache is released, until their memory is wanted:
    the next turn of a conversation begins where the last one ended.

    Law: caches that are released hold no block; a block that several hold is never written.
    """

    def __init__(
        self,
        model: SuperposableModel,
        kv: KVCache,
        *,
        vocab_size: int,
        max_positions: int,
        device: torch.device,
    ) -> None:
        """Args: vocab_size is the target's; logits beyond it are cut, missing ones -inf."""
        self.blocks = BlockPool(kv.k.shape[1])
        self.model = model
        self._kv = kv
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._device = device

    def recall(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let an empty cache hold what is known of a beginning of the text, all but its end."""
        assert not cache.blocks, "only an empty cache can recall a text"
        hashes: list[bytes] = []
        extend_block_hashes(hashes, root_hash(cache.namespace), text, (len(text) - 1) // BLOCK_SIZE)
        cache.blocks = self.blocks.match(hashes)
        cache.hashes = hashes[: len(cache.blocks)]
        cache.length = len(cache.blocks) * BLOCK_SIZE

    def keep(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let others recall what the cache holds of a text, which it will never go back behind."""
        first, full = len(cache.hashes), min(len(text), cache.length) // BLOCK_SIZE
        extend_block_hashes(cache.hashes, root_hash(cache.namespace), text, full)
        for i in range(first, full):
            self.blocks.register(cache.blocks[i], cache.hashes[i])

    def reserve(self, cache: DraftCache, length: int) -> bool:
        """Make room for a text of so many tokens; False (and nothing changed): there is none."""
        if length > self._max_positions:
            return False
        missing = num_blocks_for(length) - len(cache.blocks)
        fresh = self.blocks.allocate(max(missing, 0))
        if fresh is None:
            return False
        cache.blocks.extend(fresh)
        return True

    def extend(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> Tensor:
        """Feed tokens behind what each cache holds; return [feeds, vocab] float32 logits."""
        segments = self._segments([(cache, len(tokens)) for cache, tokens in feeds])
        ids = self._tensor([token for _, tokens in feeds for token in tokens], torch.int64)
        hidden = self.model.forward(ids, segments, self._kv)
        lengths = [len(tokens) for _, tokens in feeds]
        last = torch.from_numpy(np.cumsum(lengths) - 1).to(self._device)
        return self._logits(hidden[last])

    def superpose(
        self, feeds: Sequence[tuple[DraftCache, Sequence[int], Sequence[float]]]
    ) -> Tensor:
        """Feed one weighted sum of tokens behind each; return [feeds, vocab] float32 logits."""
        segments = self._segments([(cache, 1) for cache, _, _ in feeds])
        ids = self._tensor([tokens for _, tokens, _ in feeds], torch.int64)
        weights = self._tensor([weights for _, _, weights in feeds], torch.float32)
        return self._logits(self.model.superpose(ids, weights, segments, self._kv))

    def release(self, cache: DraftCache) -> None:
        """Give back all that a cache holds."""
        self.blocks.release(cache.blocks)
        cache.blocks, cache.length, cache.hashes = [], 0, []

    def _segments(self, feeds: Sequence[tuple[DraftCache, int]]) -> AttentionMetadata:
        """Return the rows that let each cache's text go on, which it holds from now on."""
        pieces = [_piece(cache, count) for cache, count in feeds]
        for cache, count in feeds:
            cache.length += count
        return segments_of(pieces, self._device)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        missing = self._vocab_size - logits.shape[1]
        return pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def _tensor(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)


def _piece(cache: DraftCache, count: int) -> AttentionSegment:
    """Return so many rows of a text that goes on; what is fed there is no matter of places."""
    start = cache.length
    places = np.arange(start, start + count, dtype=np.int64)
    rows = [-1] * count
    return AttentionSegment(rows, start, AttentionMode.CAUSAL, rows, places, places, cache.blocks)
