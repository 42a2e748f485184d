"""How a text and its two noisy copies lie in one row, and who sees whom.

A row is [clean | noisy A | noisy B]. The clean part ends where the last block starts; a copy starts
where the block of the answer's first token starts, so a prompt's partial last block is repeated,
visible, at its head. All three use the text's own positions. Clean tokens see clean tokens of the
same and earlier blocks; noisy ones see earlier clean blocks and their own copy's block. With one
block for the whole text there is no clean part, and this is a masked model with full attention.
Source: BD3-LM, arXiv:2503.09573, section 3; two complementary copies, arXiv:2509.26328.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.tiny_diffusion.network import Inputs
from benchmarks.tiny_diffusion.tokenizer import END, MASK

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

PADDING_WEIGHT = 0.1  # of every <|end|> but the first


@dataclass(frozen=True, slots=True)
class Text:
    """A clean text, [length] each."""

    tokens: Ints
    blocks: Ints  # number of each position's block, rising
    answer: Bools  # what may be masked and is learnt


@dataclass(frozen=True, slots=True)
class Copy:
    """One noisy copy of a text, [length] each."""

    tokens: Ints
    learnt: Bools  # masked or corrupted


@dataclass(frozen=True, slots=True)
class Row:
    """One text in its packed form, [row length] each."""

    tokens: Ints
    positions: Ints
    blocks: Ints
    copies: Ints  # 0: clean, 1 and 2: noisy
    targets: Ints
    weights: Floats  # 0: nothing is learnt here


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step takes."""

    inputs: Inputs
    wanted: Tensor  # [m] int64, indices of the positions that are learnt
    targets: Tensor  # [m] int64
    weights: Tensor  # [m] float32


def padding_weights(text: Text) -> Floats:
    """Return what each position's loss counts: padding little, so that it does not rule."""
    ends = text.answer & (text.tokens == END)
    return np.where(ends & (np.cumsum(ends) > 1), PADDING_WEIGHT, 1.0).astype(np.float32)


def pack(text: Text, copies: Sequence[Copy]) -> Row:
    """Lay a text and its noisy copies out in one row."""
    blocks, length = text.blocks, len(text.tokens)
    start = int(np.searchsorted(blocks, blocks[np.argmax(text.answer)]))
    clean = int(np.searchsorted(blocks, blocks[-1]))
    weights = padding_weights(text)
    heads = [np.arange(clean), *(np.arange(start, length) for _ in copies)]
    return Row(
        tokens=np.concatenate([text.tokens[:clean], *(copy.tokens[start:] for copy in copies)]),
        positions=np.concatenate(heads),
        blocks=np.concatenate([blocks[head] for head in heads]),
        copies=np.repeat(np.arange(len(heads)), [len(head) for head in heads]),
        targets=np.concatenate([text.tokens[head] for head in heads]),
        weights=np.concatenate(
            [np.zeros(clean, np.float32), *((weights * copy.learnt)[start:] for copy in copies)]
        ),
    )


def visible(blocks: Tensor, copies: Tensor) -> Tensor:
    """Return which key each query sees, [..., length, length] bool; copy -1 is padding."""
    q_block, k_block = blocks[..., :, None], blocks[..., None, :]
    q_copy, k_copy = copies[..., :, None], copies[..., None, :]
    within = (q_copy == k_copy) & (q_block == k_block)
    return within | ((k_copy == 0) & (k_block < q_block))


def collate(rows: Sequence[Row]) -> Batch:
    """Pad rows to one length for attention; everything else works on real positions only."""
    length = max(len(row.tokens) for row in rows)
    blocks = torch.full((len(rows), length), -1)
    copies = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        blocks[i, : len(row.blocks)] = torch.from_numpy(row.blocks)
        copies[i, : len(row.copies)] = torch.from_numpy(row.copies)
    weights = torch.from_numpy(np.concatenate([row.weights for row in rows]))
    wanted = weights.nonzero()[:, 0]
    inputs = Inputs(
        tokens=torch.from_numpy(np.concatenate([row.tokens for row in rows])),
        positions=torch.from_numpy(np.concatenate([row.positions for row in rows])),
        rows=(copies.flatten() >= 0).nonzero()[:, 0],
        allowed=visible(blocks, copies)[:, None],
    )
    targets = torch.from_numpy(np.concatenate([row.targets for row in rows]))
    return Batch(inputs, wanted, targets[wanted], weights[wanted])


def masked(text: Text, mask: Bools) -> Copy:
    """Return the copy whose masked positions hold the mask token."""
    return Copy(np.where(mask, MASK, text.tokens), mask)
