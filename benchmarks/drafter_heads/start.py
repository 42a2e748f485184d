"""Where a head's training starts: linear maps that already guess the model's next state.

The next state, as far as it is linear in the token and the states before it, is found by ridge
regression in seconds; gradients then begin where hours of them would have led.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.drafter_heads.features import Answer
from benchmarks.drafter_heads.frozen import FrozenRows
from benchmarks.drafter_heads.head import ChimeraHead, EagleHead, Head, spread

FITTED = 60_000  # rows, at most
RIDGE = 0.01  # of the rows, added to the squares of each input


def fit(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the matrix [targets, inputs] whose products with the inputs are the targets, nearly.

    Args:
        inputs: [rows, inputs].
        targets: [rows, targets].
    """
    squares = inputs.T @ inputs
    squares.diagonal().add_(RIDGE * len(inputs))
    found: Tensor = torch.linalg.solve(squares, inputs.T @ targets)
    return found.T.contiguous()


@torch.no_grad()
def fit_start(head: Head, frozen: FrozenRows, answers: Sequence[Answer]) -> None:
    """Give a new head's linear maps the values that fit best while its layer says little."""
    rows = 0
    chosen = []
    for answer in answers:
        if rows + answer.rows > FITTED:
            break
        rows += answer.rows
        chosen.append(answer)
    if isinstance(head, EagleHead):
        _fit_eagle(head, frozen, chosen)
    elif isinstance(head, ChimeraHead):
        _fit_chimera(head, frozen, chosen)


def _fit_eagle(head: EagleHead, frozen: FrozenRows, answers: Sequence[Answer]) -> None:
    states = [torch.from_numpy(answer.hidden).float() for answer in answers]
    drawn = torch.cat([head.embedded(torch.from_numpy(answer.tokens[3:])) for answer in answers])
    pairs = torch.cat([drawn, torch.cat([each[:-1] for each in states])], dim=1)
    following = torch.cat([each[1:] for each in states])
    head.mix.copy_(fit(pairs, following / frozen.final_norm))


def _fit_chimera(head: ChimeraHead, frozen: FrozenRows, answers: Sequence[Answer]) -> None:
    states = [torch.from_numpy(answer.hidden).float() for answer in answers]
    wide = torch.cat([head.wide(torch.from_numpy(a.tokens[1:])[None])[0] for a in answers])
    following = torch.cat([each[1:] for each in states])
    head.narrow.copy_(fit(wide, following / frozen.final_norm))
    codes = spread(wide @ head.narrow.T, frozen.spec.norm_eps) * head.layer.final
    ends = np.cumsum([len(each) - 1 for each in states]).tolist()
    parts = codes.tensor_split(ends[:-1])
    for depth, mix in enumerate(head.mixes):
        pairs = [
            torch.cat([h[: len(h) - 1 - depth], code[depth:]], dim=1)
            for h, code in zip(states, parts, strict=True)
        ]
        targets = torch.cat([h[depth + 1 :] for h in states])
        mix.copy_(fit(torch.cat(pairs), targets))
