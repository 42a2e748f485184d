"""From laws of tokens to guesses: the best ones, under the noise that the tokens are drawn with.

A draw is argmax of log p / T + G, with noise G that depends on request and place alone. So the best
guess of a law q is argmax of log q / T + G, with the same noise: it agrees with the draw with
probability (1 - TV) / (1 + TV) or more. Source: Daliri, Musco and Suresh, arXiv:2408.07978.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.sampling.params import GREEDY_BELOW, SamplingParams
from plait.kernels import noise


class DrawParams:
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


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """Which token each column of some logits is about."""

    token_ids: Tensor | None = None  # [columns] int64, rising; None: the column's number
    naive: bool = False  # the oracles instead of the compiled kernels

    def noise_of(self, keys: Tensor, count: int) -> Tensor:
        """Return the tokens' noise [keys, count]."""
        if self.token_ids is None:
            return noise.gumbel(keys, count, naive=self.naive)
        return noise.gumbel(keys, int(self.token_ids[-1]) + 1, naive=self.naive)[:, self.token_ids]


def rank_guesses(
    logits: Tensor,
    dice: Sequence[DrawParams],
    positions: Sequence[int],
    k: int,
    columns: DraftVocabulary,
) -> tuple[Tensor, Tensor]:
    """Return the k best guesses of each row, best first, as columns, and their shares.

    A share is the softmax of what the guesses are ranked by, noise included: how likely the guess
    stays the best if the law is off by about as much noise again. For greedy rows it is q.

    Args:
        logits: [rows, columns]; not modified.
        dice: of each row's sequence.
        positions: in the text, of the token that each row is about.
        k: at most the number of columns.
        columns: of the logits.
    Returns:
        [rows, k] int64 and [rows, k] float32.
    """
    scores = logits
    drawn = [row for row, each in enumerate(dice) if not each.is_greedy]
    if drawn:
        device = logits.device
        keys = torch.tensor([dice[row].key(positions[row]) for row in drawn], device=device)
        heat = torch.tensor([dice[row].inverse_temperature for row in drawn], device=device)
        scores = logits.clone()
        scores[drawn] = scores[drawn] * heat[:, None] + columns.noise_of(keys, logits.shape[1])
    best = scores.topk(k, dim=1)
    return best.indices, (best.values - scores.logsumexp(dim=1, keepdim=True)).exp()
