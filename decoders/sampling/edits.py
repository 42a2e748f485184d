"""Bans, bias and penalties of one row, in place; only the entries concerned are touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

import torch
from torch import Tensor

from plait.decoders.sampling.counts import TokenCounts
from plait.decoders.sampling.params import SamplingParams


def keep_only(row: Tensor, token_ids: Collection[int]) -> None:
    """Make all other tokens illegal."""
    index = _index(token_ids, row)
    kept = row[index]
    row.fill_(-torch.inf)
    row[index] = kept


def ban(row: Tensor, token_ids: Collection[int]) -> None:
    """Make these tokens illegal."""
    row[_index(token_ids, row)] = -torch.inf


def add_bias(row: Tensor, bias: dict[int, float]) -> None:
    """Add logit_bias."""
    row[_index(bias.keys(), row)] += torch.tensor(list(bias.values()), device=row.device)


def penalise(row: Tensor, counts: TokenCounts, params: SamplingParams) -> None:
    """Apply the repetition penalty to all tokens seen, presence and frequency to the output's.

    Repetition divides positive logits and multiplies the others; then presence subtracts once, and
    frequency per occurrence. Source: Keskar et al. 2019, arXiv:1909.05858; OpenAI's API reference.
    """
    ids, occurrences = counts.tensors(row.device)
    logits = row[ids]
    factor = params.repetition_penalty
    logits = torch.where(logits > 0.0, logits / factor, logits * factor)
    logits -= params.presence_penalty * (occurrences > 0.0) + params.frequency_penalty * occurrences
    row[ids] = logits


def scale(row: Tensor, log_factors: Mapping[int, float]) -> float:
    """Add the logs of factors to a row of scores; return the log of what its mass is multiplied by.

    Tokens that have no probability keep none. -inf: nothing is left.
    """
    before = row.double().logsumexp(0)
    row[_index(log_factors.keys(), row)] += torch.tensor(
        list(log_factors.values()), device=row.device
    )
    after = row.double().logsumexp(0)
    return float(after - before) if after > -inf else -inf


def _index(token_ids: Collection[int], row: Tensor) -> Tensor:
    return torch.tensor(list(token_ids), dtype=torch.int64, device=row.device)
