"""Gumbel noise that is a function of its key, and the draw made with it.

A key is (seed, stream, position): the request's 64 bits, 64 bits that tell its sequences apart, and
the absolute index of the token drawn (prompt length plus outputs so far). Token t of a key gets the
noise that Philox4x32-10 makes of key words (seed low, seed high) and counter words (16 * (t // 64)
+ t % 16, position, stream low, stream high), output word (t // 16) % 4; this order lets 16 lanes
run side by side. The sequences that a request starts with have the streams 0..n-1; forks of them
have streams with a high word that is not 0.

Law: argmax(scores + noise) is a draw from softmax(scores), and the noise depends on nothing but
the key and the token: not on the batch, the vocabulary's size, the number of threads or the machine
(see elementary.py).

Source: Salmon et al. 2011 (Philox, Random123); docs/architecture.md, law 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.noise import reference as _naive


def key(seed: int, stream: int, position: int) -> tuple[int, int, int]:
    """Return one row of a keys tensor; unsigned seed and stream become signed int64."""
    return _signed(seed), _signed(stream), position


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def gumbel(keys: Tensor, num_tokens: int, *, naive: bool = False) -> Tensor:
    """Return standard Gumbel noise; every value lies in [-2.9, 22.9].

    Args:
        keys: [b, 3] int64, see `key`.
        num_tokens: tokens of the vocabulary, >= 1.
        naive: use the oracle even where the compiled kernel is available.
    Returns:
        [b, num_tokens] float32 on the device of keys.
    Cost: 1 (AVX-512) to 4 ns (AVX2) a value and core compiled.
    """
    if naive or not extension.is_supported(keys.device):
        return _naive.gumbel(keys, num_tokens)
    noise: Tensor = torch.ops.plait_noise.gumbel(keys, num_tokens)
    return noise


def gumbel_argmax(
    scores: Tensor,
    keys: Tensor,
    *,
    temperatures: Tensor | None = None,
    rows: Tensor | None = None,
    bitmask: Tensor | None = None,
    naive: bool = False,
) -> Tensor:
    """Return the token that wins under scores / temperature + noise, the lowest id among equals.

    Neither the noise nor the scaled scores are stored. A temperature of 0 means neither: argmax.
    Scores of -inf and NaN never win, nor do illegal tokens; a row of nothing else gives token 0.

    Args:
        scores: [n, vocab] float32, rows contiguous; not modified.
        keys: [b, 3] int64, see `key`.
        temperatures: [b] float32, >= 0; None means 1 everywhere.
        rows: [b] int64, the row of scores that draw i reads; None means row i (n = b).
        bitmask: [b, words] int32, bit t % 32 of word t // 32 says that token t is legal; a token
            without a bit is illegal. Stretches without a legal token cost next to nothing.
        naive: use the oracle even where the compiled kernel is available.
    Returns:
        [b] int64 token ids.
    Cost: compiled, one pass over the scores, and noise for the groups of 64 tokens that may win: at
        temperature 1 some 0.1 ms a row and core for 49,152 tokens that a model has scored (AVX2).
    """
    if naive or not extension.is_supported(scores.device):
        return _naive.gumbel_argmax(scores, keys, temperatures, rows, bitmask)
    tokens: Tensor = torch.ops.plait_noise.gumbel_argmax(scores, keys, temperatures, rows, bitmask)
    return tokens
