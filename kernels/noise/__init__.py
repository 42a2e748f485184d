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

NoiseRow = tuple[int, int, int]  # seed, stream, position


def key(seed: int, stream: int, position: int) -> NoiseRow:
    """Return one row of a keys tensor; unsigned seed and stream become signed int64."""
    return _signed(seed), _signed(stream), position


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word
