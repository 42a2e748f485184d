"""Reference noise and draws, in plain torch.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10);
Gumbel-max as in Maddison et al. 2014, arXiv:1411.0030.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels.noise import elementary

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LANES = 16  # counters of one group; a group serves 4 * 16 tokens
GROUP = 4 * LANES
WORD_UNIT = 2.0**-32 * (1.0 - 2.0**-24)  # a little below 2**-32: no word becomes 1


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four output words of Philox4x32-10; all words are int64 holding 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # products wrap modulo 2**64; the mask after the arithmetic shift keeps the high half exact
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD) ^ c1 ^ k0,
            p1 & WORD,
            ((p0 >> 32) & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def random_words(keys: Tensor, num_tokens: int) -> Tensor:
    """Return [b, num_tokens] int64 holding the 32 random bits of each token."""
    groups = -(-num_tokens // GROUP)
    index = torch.arange(groups * LANES, device=keys.device).expand(len(keys), -1)
    seed, stream, position = (column.expand_as(index) for column in keys[:, :, None].unbind(1))
    counter = (index, position & WORD, stream & WORD, (stream >> 32) & WORD)
    words = philox(counter, (seed & WORD, (seed >> 32) & WORD))
    grouped = torch.stack([word.view(-1, groups, LANES) for word in words], dim=2)
    return grouped.flatten(1)[:, :num_tokens]


def gumbel(keys: Tensor, num_tokens: int) -> Tensor:
    """Return standard Gumbel noise; every value lies in [-2.9, 22.9].

    Args:
        keys: [b, 3] int64, see `key`.
        num_tokens: tokens of the vocabulary, >= 1.
    Returns:
        [b, num_tokens] float32 on the device of keys.
    """
    uniform = (random_words(keys, num_tokens).to(torch.float32) + 0.5) * WORD_UNIT
    # -log(1 - u), not -log(u): the noise that wins comes from small u, where floats are dense
    exponential = -elementary.log1m(uniform)
    return -elementary.log(exponential)


def gumbel_argmax(
    scores: Tensor,
    keys: Tensor,
    temperatures: Tensor | None = None,
    rows: Tensor | None = None,
    bitmask: Tensor | None = None,
) -> Tensor:
    """Return the token that wins under scores / temperature + noise, the lowest id among equals.

    A temperature of 0 means neither: argmax. Scores of -inf and NaN never win, nor do illegal
    tokens; a row of nothing else gives token 0.

    Args:
        scores: [n, vocab] float32, rows contiguous; not modified.
        keys: [b, 3] int64, see `key`.
        temperatures: [b] float32, >= 0; None means 1 everywhere.
        rows: [b] int64, the row of scores that draw i reads; None means row i (n = b).
        bitmask: [b, words] int32, bit t % 32 of word t // 32 says that token t is legal; a token
            without a bit is illegal.
    Returns:
        [b] int64 token ids.
    """
    values = scores if rows is None else scores[rows]
    if bitmask is not None:
        values = values.masked_fill(~legal_tokens(bitmask, scores.shape[1]), -torch.inf)
    noise = gumbel(keys, scores.shape[1])
    if temperatures is not None:
        hot = temperatures[:, None] > 0.0
        values = values / torch.where(hot, temperatures[:, None], 1.0)
        noise = torch.where(hot, noise, 0.0)
    perturbed = (values + noise).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # torch.argmax promises no order among equals
    index = torch.arange(scores.shape[1], device=scores.device)
    ties = perturbed == perturbed.amax(dim=1, keepdim=True)
    return torch.where(ties, index, scores.shape[1]).amin(dim=1)


def legal_tokens(bitmask: Tensor, vocab: int) -> Tensor:
    """Return [b, vocab] bool; tokens that the bitmask [b, words] has no bit for are illegal."""
    bit = torch.arange(32, device=bitmask.device, dtype=torch.int32)
    bits = ((bitmask[:, :, None] >> bit) & 1).bool().flatten(1)[:, :vocab]
    tail = bits.new_zeros(len(bits), vocab - bits.shape[1])
    return torch.cat([bits, tail], dim=1)
