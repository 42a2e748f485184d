"""Ranks guesses with the noise that the target will sample with.

The target samples argmax of log p / T + G, with noise G that depends on the request and the
position only. So the best guess from another distribution q is argmax of log q / T + G, with the
same noise: it is right with probability (1 - TV) / (1 + TV) or more, where TV is the total
variation distance. Source: Daliri, Musco and Suresh, arXiv:2408.07978.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.sampling.params import GREEDY_BELOW, SamplingParams
from plait.kernels import noise
from plait.kernels.backend import KernelBackend


class DrawParams:
    """How the tokens of one sequence are sampled: its temperature and its noise."""

    def __init__(self, request: DecodeRequest) -> None:
        self._params: SamplingParams = request.sampling
        self._noise = request.text.noise

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self._params.temperature < GREEDY_BELOW

    @property
    def inverse_temperature(self) -> float:
        """The factor of the logits; 1 for greedy requests."""
        return 1.0 if self.is_greedy else 1.0 / self._params.temperature

    def key(self, position: int) -> tuple[int, int, int]:
        """Return the noise key of the token at a position of the text."""
        return noise.key(self._noise.seed, self._noise.stream, position)


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The tokens that the columns of some logits stand for."""

    backend: KernelBackend
    token_ids: Tensor | None = None  # [columns] int64, rising; None: column i is token i

    def noise_of(self, keys: Tensor, count: int) -> Tensor:
        """Return the noise of the columns [keys, count]."""
        if self.token_ids is None:
            return self.backend.gumbel(keys, count)
        return self.backend.gumbel(keys, int(self.token_ids[-1]) + 1)[:, self.token_ids]


def rank_guesses(
    logits: Tensor,
    draws: Sequence[DrawParams],
    positions: Sequence[int],
    k: int,
    vocabulary: DraftVocabulary,
) -> tuple[Tensor, Tensor]:
    """Return the k best guesses of each row, best first, as columns, and their probabilities.

    The probability of a guess is its share in the softmax of the noisy scores that guesses are
    ranked by. For greedy rows it is q.

    Args:
        logits: [rows, columns]; not modified.
        draws: of the sequence of each row.
        positions: of the guessed token of each row, in the text.
        k: at most the number of columns.
        vocabulary: of the columns.
    Returns:
        [rows, k] int64 and [rows, k] float32.
    """
    scores = logits
    noisy = [row for row, each in enumerate(draws) if not each.is_greedy]
    if noisy:
        device = logits.device
        keys = torch.tensor([draws[row].key(positions[row]) for row in noisy], device=device)
        inverse_temperatures = torch.tensor(
            [draws[row].inverse_temperature for row in noisy], device=device
        )
        scores = logits.clone()
        scores[noisy] = scores[noisy] * inverse_temperatures[:, None] + vocabulary.noise_of(
            keys, logits.shape[1]
        )
    best = scores.topk(k, dim=1)
    return best.indices, (best.values - scores.logsumexp(dim=1, keepdim=True)).exp()
