"""A draft model with a paged KV cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.decoders.speculative.draft_model.protocol import DraftCache
from plait.kernels.backend import KernelBackend
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata, AttentionSegment
from plait.server.engine.forward_batch import ForwardBatch, SequenceInput, build_forward_batch
from plait.server.engine.kv.block_pool import BlockPool
from plait.server.engine.kv.block_table import BLOCK_SIZE, num_blocks_for
from plait.server.engine.kv.prefix_index import extend_block_hashes, root_hash
from plait.server.engine.runner import RunnableModel


class SuperposableModel(RunnableModel, Protocol):
    """A model whose rows may be sums of tokens (plait.server.models.transformer.Transformer)."""

    def superpose(
        self, token_ids: Tensor, weights: Tensor, metadata: AttentionMetadata, kv: KVCache
    ) -> Tensor:
        """Return hidden states [rows, hidden] for sums of the embeddings of [rows, k] tokens."""


class CachedDraftModel:
    """Runs a model over paged caches of texts; implements DraftModel.

    Shared blocks can still be matched after a cache is released, until they are reused: the next
    turn of a conversation begins where the last one ended.

    Law: a released cache holds no block; a block that several caches hold is never written.
    """

    def __init__(
        self,
        model: SuperposableModel,
        kv: KVCache,
        *,
        vocab_size: int,
        max_positions: int,
        backend: KernelBackend,
    ) -> None:
        """Args: vocab_size is the target's; logits beyond it are cut, missing ones -inf."""
        self.blocks = BlockPool(kv.k.shape[1])
        self.model = model
        self._kv = kv
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._backend = backend

    def match_prefix(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Fill an empty cache with the known blocks of a prefix of the text, never all of it."""
        assert not cache.blocks, "only an empty cache can match a prefix"
        hashes: list[bytes] = []
        extend_block_hashes(hashes, root_hash(cache.namespace), text, (len(text) - 1) // BLOCK_SIZE)
        cache.blocks = self.blocks.match(hashes)
        cache.hashes = hashes[: len(cache.blocks)]
        cache.length = len(cache.blocks) * BLOCK_SIZE

    def share_prefix(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let other sequences match the cached prefix; the cache is never cut below it again."""
        first, full = len(cache.hashes), min(len(text), cache.length) // BLOCK_SIZE
        extend_block_hashes(cache.hashes, root_hash(cache.namespace), text, full)
        for i in range(first, full):
            self.blocks.register(cache.blocks[i], cache.hashes[i])

    def reserve(self, cache: DraftCache, length: int) -> bool:
        """Allocate blocks for `length` tokens; False, and nothing changed, if there are none."""
        if length > self._max_positions:
            return False
        missing = num_blocks_for(length) - len(cache.blocks)
        fresh = self.blocks.allocate(max(missing, 0))
        if fresh is None:
            return False
        cache.blocks.extend(fresh)
        return True

    def extend(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> Tensor:
        """Feed tokens at the end of each cache; return [feeds, vocab] float32 logits."""
        batch = self._append(feeds)
        hidden = self.model.forward(batch.token_ids, batch.metadata, self._kv, batch.logits_index)
        return self._logits(batch.read(hidden))

    def superpose(
        self, feeds: Sequence[tuple[DraftCache, Sequence[int], Sequence[float]]]
    ) -> Tensor:
        """Feed one weighted sum of embeddings at the end of each; return [feeds, vocab] logits."""
        batch = self._append([(cache, tokens[:1]) for cache, tokens, _ in feeds])
        ids = self._backend.tensor([tokens for _, tokens, _ in feeds], torch.int64)
        weights = self._backend.tensor([weights for _, _, weights in feeds], torch.float32)
        return self._logits(self.model.superpose(ids, weights, batch.metadata, self._kv))

    def release(self, cache: DraftCache) -> None:
        """Release all blocks of a cache."""
        self.blocks.release(cache.blocks)
        cache.blocks, cache.length, cache.hashes = [], 0, []

    def _append(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> ForwardBatch:
        """Append rows to each cache; return the batch that computes them and reads the last."""
        inputs = [
            SequenceInput([AttentionSegment(tokens, cache.length, cache.blocks)], [len(tokens) - 1])
            for cache, tokens in feeds
        ]
        for cache, tokens in feeds:
            cache.length += len(tokens)
        return build_forward_batch(inputs, self._backend)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        missing = self._vocab_size - logits.shape[1]
        return pad(logits, (0, missing), value=-torch.inf) if missing else logits
