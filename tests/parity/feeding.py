"""Feeds hand-made segments to a model: what the engine does, without the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import BLOCK_SIZE, CAUSAL, TREE, AttentionMetadata
from plait.server.models.transformer import Transformer


@dataclass(frozen=True)
class Piece:
    """One segment of a sequence whose KV blocks are blocks[0], blocks[1], ..."""

    token_ids: Sequence[int]
    blocks: Sequence[int]
    context_len: int = 0
    attend: int = CAUSAL
    parents: Sequence[int] = field(default=())

    def positions(self) -> list[int]:
        """Return rotary positions: a tree row stands one after its parent."""
        if self.attend != TREE:
            return [self.context_len + i for i in range(len(self.token_ids))]
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return [self.context_len + d for d in depth]

    def slots(self) -> list[int]:
        """Return where each row's key and value go."""
        tokens = range(self.context_len, self.context_len + len(self.token_ids))
        return [
            self.blocks[token // BLOCK_SIZE] * BLOCK_SIZE + token % BLOCK_SIZE for token in tokens
        ]


def segments(pieces: Sequence[Piece]) -> AttentionMetadata:
    """Return the AttentionMetadata that describe the pieces, in order."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece.token_ids))
    width = max(len(piece.blocks) for piece in pieces)
    tables = [[*piece.blocks, *[0] * (width - len(piece.blocks))] for piece in pieces]
    return AttentionMetadata(
        cu_seqlens_q=_int32(starts),
        context_lens=_int32([piece.context_len for piece in pieces]),
        block_tables=_int32(tables),
        attention_modes=_int32([piece.attend for piece in pieces]),
        parents=_int32([p for piece in pieces for p in piece.parents or [-1] * len(piece.slots())]),
        positions=_int32([p for piece in pieces for p in piece.positions()]),
        slot_mapping=torch.tensor(
            [s for piece in pieces for s in piece.slots()], dtype=torch.int64
        ),
    )


def feed(model: Transformer, kv: KVCache, *pieces: Piece) -> Tensor:
    """Run the pieces in one forward pass; return logits [rows, vocab]."""
    token_ids = torch.tensor([token for piece in pieces for token in piece.token_ids])
    return model.logits(model.forward(token_ids, segments(pieces), kv))


def logits_of(model: Transformer, token_ids: Sequence[int], *, chunk: int = 0) -> Tensor:
    """Return logits [tokens, vocab] of one text, fed whole or in chunks."""
    blocks = list(range(-(-len(token_ids) // BLOCK_SIZE)))
    kv = model.new_kv_cache(len(blocks))
    chunk = chunk or len(token_ids)
    rows = [
        feed(model, kv, Piece(token_ids[start : start + chunk], blocks, context_len=start))
        for start in range(0, len(token_ids), chunk)
    ]
    return torch.cat(rows)


def greedy(
    model: Transformer, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Return the greedy continuation of every prompt, all decoded in one batch."""
    width = max(-(-(len(prompt) + num_tokens) // BLOCK_SIZE) for prompt in prompts)
    kv = model.new_kv_cache(width * len(prompts))
    tables = [range(i * width, (i + 1) * width) for i in range(len(prompts))]
    rows = feed(model, kv, *[Piece(p, t) for p, t in zip(prompts, tables, strict=True)])
    lengths = [len(prompt) for prompt in prompts]
    last = torch.tensor(lengths).cumsum(0) - 1
    answers = rows[last].argmax(-1).unsqueeze(1)
    for step in range(num_tokens - 1):
        pieces = [
            Piece([int(answers[i, -1])], table, context_len=lengths[i] + step)
            for i, table in enumerate(tables)
        ]
        answers = torch.cat([answers, feed(model, kv, *pieces).argmax(-1, keepdim=True)], 1)
    return [[int(token) for token in row] for row in answers]


def _int32(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
