"""What samplers, drafters and unmaskers ask of rows of scores, one pass over memory a row.

All scores are float32 [b, vocab] with contiguous rows, in natural-log units; -inf marks a token
that can't be drawn. A row's results never depend on other rows. Equals are ordered by token id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.row_stats import reference as _naive


@dataclass(frozen=True, slots=True)
class RowStats:
    """Statistics of softmax(scores), float32 unless said."""

    top_ids: Tensor  # [b, 2] int64: the best token and the next
    top_scores: Tensor  # [b, 2]
    logsumexp: Tensor  # [b]
    entropy: Tensor  # [b], nats; nan if nobody asked for it


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Logarithms of softmax(scores)."""

    chosen: Tensor  # [b] float32
    top_ids: Tensor  # [b, k] int64, best first
    top: Tensor  # [b, k] float32


def row_stats(scores: Tensor, *, entropy: bool = True, naive: bool = False) -> RowStats:
    """Return the statistics of each row.

    Args:
        scores: [b, vocab], vocab >= 2; not modified.
        entropy: whether to compute the entropies; the other statistics keep their bits without.
        naive: use the oracle even where the compiled kernel is available.
    """
    run = (
        _naive.row_stats
        if naive or not extension.is_supported(scores.device)
        else torch.ops.plait_row_stats.row_stats
    )
    top_ids, top_scores, stats = run(scores, entropy)
    return RowStats(top_ids, top_scores, *stats.unbind(1))


def legal_mass(
    scores: Tensor,
    bitmask: Tensor,
    temperatures: Tensor,
    *,
    rows: Tensor | None = None,
    naive: bool = False,
) -> Tensor:
    """Return the log of the probability that each row's law gives to its legal tokens.

    It is finite however small the probability, and -inf exactly where no legal token has a score.

    Args:
        scores: [n, vocab]; not modified. A row's law is softmax(scores / temperature).
        bitmask: [b, words] int32, bit t % 32 of word t // 32 says that token t is legal; a token
            without a bit is illegal.
        temperatures: [b] float32, > 0.
        rows: [b] int64, the row of scores that entry i reads; None means row i (n = b).
        naive: use the oracle even where the compiled kernel is available.
    Returns:
        [b] float32.
    """
    run = (
        _naive.legal_mass
        if naive or not extension.is_supported(scores.device)
        else torch.ops.plait_row_stats.legal_mass
    )
    mass: Tensor = run(scores, bitmask, temperatures, rows)
    return mass


def row_logprobs(
    scores: Tensor, token_ids: Tensor, k: int, *, rows: Tensor | None = None, naive: bool = False
) -> RowLogprobs:
    """Return the log-probabilities of one given token and of the k best tokens of each row.

    Args:
        scores: [n, vocab]; not modified.
        token_ids: [b] int64.
        k: 0..vocab; meant to be small (an API allows 20).
        rows: [b] int64, the row of scores that entry i reads; None means row i (n = b).
        naive: use the oracle even where the compiled kernel is available.
    """
    run = (
        _naive.logprobs
        if naive or not extension.is_supported(scores.device)
        else torch.ops.plait_row_stats.logprobs
    )
    return RowLogprobs(*run(scores, token_ids, k, rows))


def apply_bitmask(scores: Tensor, bitmask: Tensor, *, naive: bool = False) -> None:
    """Set the scores of illegal tokens to -inf, in place; bitmask as in `legal_mass`."""
    if naive or not extension.is_supported(scores.device):
        _naive.apply_bitmask(scores, bitmask)
    else:
        torch.ops.plait_row_stats.apply_bitmask_(scores, bitmask)


def truncate(
    scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, *, naive: bool = False
) -> None:
    """Set the scores outside each row's nucleus to -inf, in place; the best token always stays.

    Three filters, in this order; equals are ranked by rising token id:
    min_p keeps the tokens with best - score <= -log(min_p), rounded to float32;
    top_k keeps the k best of these;
    top_p keeps the smallest prefix of these, best first, whose share of their mass reaches p.
    Masses are exp(score - best) in units of 2**-40, whole numbers: sums are exact in any order.

    Args:
        scores: [b, vocab], already divided by the temperature.
        top_k: [b] int64, 0 is off.
        top_p: [b] float64, 1 is off.
        min_p: [b] float64 in [0, 1], 0 is off.
        naive: use the oracle even where the compiled kernel is available.
    Cost: O(vocab) a row and a sort of the tokens near the cut, no full sort.
    """
    reach = (-min_p.log()).to(torch.float32)
    if naive or not extension.is_supported(scores.device):
        _naive.truncate(scores, top_k, top_p, reach)
    else:
        torch.ops.plait_row_stats.truncate_(scores, top_k, top_p, reach)
