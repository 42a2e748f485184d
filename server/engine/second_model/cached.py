"""A draft model over a paged cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.decoders.protocol import Attend
from plait.decoders.speculative.second_model.protocol import DraftCache
from plait.server.engine.kv_blocks import BlockManager, num_blocks_for
from plait.server.engine.runner import Model, Piece, segments_of
from plait.server.models.transformer import KVCache


class CachedDraftModel:
    """Feeds texts to a model and keeps them, as far as its blocks reach; see DraftModel.

    Law: every block belongs to one cache or is free; caches that are released hold none.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        *,
        vocab_size: int,
        max_positions: int,
        device: torch.device,
    ) -> None:
        """Args: vocab_size is the target's; logits beyond it are cut, missing ones -inf."""
        self.blocks = BlockManager(kv.k.shape[1], prefix_caching=False)
        self.model = model
        self._kv = kv
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._device = device

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
        pieces = [_piece(cache, tokens) for cache, tokens in feeds]
        token_ids = [token for _, tokens in feeds for token in tokens]
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        hidden = self.model.forward(ids, segments_of(pieces, self._device), self._kv)
        lengths = [len(tokens) for _, tokens in feeds]
        last = torch.from_numpy(np.cumsum(lengths) - 1).to(self._device)
        for cache, tokens in feeds:
            cache.length += len(tokens)
        logits = self.model.logits(hidden[last])
        missing = self._vocab_size - logits.shape[1]
        return pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def release(self, cache: DraftCache) -> None:
        """Give back all that a cache holds."""
        self.blocks.release(cache.blocks)
        cache.blocks, cache.length = [], 0


def _piece(cache: DraftCache, tokens: Sequence[int]) -> Piece:
    """Return the rows of a text that goes on."""
    start, count = cache.length, len(tokens)
    places = np.arange(start, start + count, dtype=np.int64)
    return Piece(tokens, start, Attend.CAUSAL, [-1] * count, places, places, cache.blocks)
