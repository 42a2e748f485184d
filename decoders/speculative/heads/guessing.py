"""From laws of tokens to guesses: the best ones, under the noise that the tokens are drawn with.

A draw is argmax of log p / T + G, with noise G that depends on request and place alone. So the best
guess of a law q is argmax of log q / T + G, with the same noise: it agrees with the draw with
probability (1 - TV) / (1 + TV) or more. Source: Daliri, Musco and Suresh, arXiv:2408.07978.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.decoders.protocol import DecodeRequest
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.state import GREEDY_BELOW
from plait.kernels import noise


class Dice:
    """How one sequence's tokens are drawn: its temperature and its noise."""

    def __init__(self, request: DecodeRequest) -> None:
        self._params: SamplingParams = request.sampling
        self._sequence_index = request.sequence_index

    @property
    def is_greedy(self) -> bool:
        """Whether the best token of each law is taken."""
        return self._params.temperature < GREEDY_BELOW

    @property
    def inverse_temperature(self) -> float:
        """What logits are multiplied with; 1 where the best token is taken."""
        return 1.0 if self.is_greedy else 1.0 / self._params.temperature

    def key(self, position: int) -> tuple[int, int, int]:
        """Return the noise key of the token at a position of the text."""
        return noise.key(self._params.seed, self._sequence_index, position)


def ranked(
    logits: Tensor,
    dice: Sequence[Dice],
    positions: Sequence[int],
    k: int,
    *,
    token_ids: Tensor | None = None,
    naive: bool = False,
) -> list[list[int]]:
    """Return the k best guesses of each row, best first, as columns of the logits.

    Args:
        logits: [rows, columns]; not modified.
        dice: of each row's sequence.
        positions: in the text, of the token that each row is about.
        token_ids: [columns] rising, which token each column is about; None: the column's number.
    """
    scores = logits
    drawn = [row for row, each in enumerate(dice) if not each.is_greedy]
    if drawn:
        keys = torch.tensor([dice[row].key(positions[row]) for row in drawn], device=logits.device)
        heat = torch.tensor([dice[row].inverse_temperature for row in drawn], device=logits.device)
        last = logits.shape[1] - 1 if token_ids is None else int(token_ids[-1])
        shared = noise.gumbel(keys, last + 1, naive=naive)
        shared = shared if token_ids is None else shared[:, token_ids]
        scores = logits.clone()
        scores[drawn] = scores[drawn] * heat[:, None] + shared
    found: list[list[int]] = scores.topk(min(k, logits.shape[1]), dim=1).indices.tolist()
    return found
