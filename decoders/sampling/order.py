"""The order of a row's draws: who is drawn if all before it are banned.

Tokens by falling score + Gumbel noise are draws without replacement, each proportional to its
probability among those that are left. Source: Vieira 2014, "Gumbel-max trick and weighted reservoir
sampling"; Kool et al., arXiv:1903.06059.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FIRST = 16  # tokens that are sorted at first; then GROWTH times as many
GROWTH = 8


def draw_order(scores: Tensor, noise: Tensor | None) -> Iterator[int]:
    """Yield the tokens of one row by falling score + noise, equals by rising token.

    Args:
        scores: [vocab] float32, as they are drawn from; -inf and NaN are never drawn.
        noise: [1, vocab] float32 standard Gumbel noise; None: greedy.
    """
    keys = scores if noise is None else scores + noise[0]
    keys = keys.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    num_legal = int((keys > -torch.inf).sum())
    num_read, limit = 0, FIRST
    while num_read < num_legal:
        limit = min(limit, num_legal)
        least = torch.topk(keys, limit, sorted=False).values.min()
        ids = (keys >= least).nonzero()[:, 0]  # rising; all of those that equal the least
        ranked = ids[keys[ids].sort(descending=True, stable=True).indices].tolist()
        yield from ranked[num_read:]
        num_read, limit = len(ranked), limit * GROWTH
