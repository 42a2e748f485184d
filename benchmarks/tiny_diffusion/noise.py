"""What is hidden from the model, and what is garbled.

Rates are drawn per block from an interior interval, since decoding starts from blocks that are all
holes and passes through every rate below. A fifth of the blocks is hidden altogether. The second
copy hides what the first shows, so that every token is learnt once a pair.
Sources: BD3-LM, arXiv:2503.09573, section 5 (clipped rates); Fast-dLLM v2, arXiv:2509.26328.
"""

from __future__ import annotations

import numpy as np

from benchmarks.tiny_diffusion.layout import Bools, Copy, Text, masked

LOWEST_RATE = 0.3
ALL_HIDDEN = 0.2
GARBLED_BATCHES = 0.1
FIRST_WORD = 5  # ids below are special


def two_copies(text: Text, rng: np.random.Generator) -> list[Copy]:
    """Return two noisy copies, one the complement of the other wherever not all is hidden."""
    first, second = np.zeros_like(text.answer), np.zeros_like(text.answer)
    for block in np.unique(text.blocks[text.answer]):
        places = np.flatnonzero(text.answer & (text.blocks == block))
        hidden = _some(len(places), rng)
        first[places] = True if rng.random() < ALL_HIDDEN else hidden
        second[places] = ~hidden
    return [masked(text, mask) for mask in (first, second) if mask.any()]


def left_to_right(text: Text, size: int, rng: np.random.Generator) -> list[Copy]:
    """Return copies as block-by-block decoding of a whole canvas meets them.

    Up to some place all is known, the `size` tokens from there partly, nothing behind.
    """
    places = np.flatnonzero(text.answer)
    start = int(rng.integers(len(places)))
    window, behind = places[start : start + size], places[start + size :]
    hidden = _some(len(window), rng)
    copies = []
    for part in (hidden, ~hidden):
        mask = np.zeros_like(text.answer)
        mask[window], mask[behind] = part, True
        if mask.any():
            copies.append(masked(text, mask))
    return copies


def garble(text: Text, copy: Copy, vocab: int, rng: np.random.Generator) -> Copy:
    """Replace 5 to 15 % of what the copy shows of the answer by random words, to be put right."""
    shown = text.answer & ~copy.learnt
    struck = shown & (rng.random(len(shown)) < rng.uniform(0.05, 0.15))
    words = rng.integers(FIRST_WORD, vocab, len(shown))
    return Copy(np.where(struck, words, copy.tokens), copy.learnt | struck)


def _some(count: int, rng: np.random.Generator) -> Bools:
    """Hide some of `count` places, at least one."""
    hidden: Bools = rng.random(count) < rng.uniform(LOWEST_RATE, 1)
    hidden[rng.integers(count)] = True
    return hidden
