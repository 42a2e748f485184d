"""Reference statistics and filters of rows of scores, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels.noise import elementary
from plait.kernels.noise.reference import legal_tokens
from plait.kernels.row_stats import RowLogprobs, RowStats

MASS_UNIT = 2.0**40


def row_stats(scores: Tensor, entropy: bool = True) -> RowStats:
    """Return the statistics of each row.

    Args:
        scores: [b, vocab], vocab >= 2; not modified.
        entropy: whether to compute the entropies; the other statistics keep their bits without.
    """
    top_scores, top_ids = _descending(scores)
    exact = scores.double()
    total = exact.logsumexp(dim=1)
    nats = torch.full_like(total, torch.nan)
    if entropy:
        logprobs = exact - total[:, None]
        nats = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(dim=1)
    return RowStats(top_ids[:, :2], top_scores[:, :2], total.float(), nats.float())


def legal_mass(
    scores: Tensor, bitmask: Tensor, temperatures: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Return the log of the probability that each row's distribution gives to its legal tokens.

    It is finite however small the probability, and -inf exactly where no legal token has a score.

    Args:
        scores: [n, vocab]; not modified. The distribution is softmax(scores / temperature).
        bitmask: [b, words] int32, see the package.
        temperatures: [b] float32, > 0.
        rows: [b] int64, the row of scores that entry i reads; None means row i (n = b).
    Returns:
        [b] float32.
    """
    values = scores if rows is None else scores[rows]
    exact = values.double() / temperatures[:, None]
    legal = exact.masked_fill(~legal_tokens(bitmask, scores.shape[1]), -torch.inf)
    mass = legal.logsumexp(dim=1) - exact.logsumexp(dim=1)
    return mass.nan_to_num(nan=-torch.inf, neginf=-torch.inf).to(torch.float32)


def row_logprobs(
    scores: Tensor, token_ids: Tensor, k: int, rows: Tensor | None = None
) -> RowLogprobs:
    """Return the log-probabilities of one given token and of the k best tokens of each row.

    Args:
        scores: [n, vocab]; not modified.
        token_ids: [b] int64.
        k: 0..vocab; meant to be small (an API allows 20).
        rows: [b] int64, the row of scores that entry i reads; None means row i (n = b).
    """
    values = scores if rows is None else scores[rows]
    total = values.double().logsumexp(dim=1, keepdim=True)
    top_scores, top_ids = _descending(values)
    chosen = values.gather(1, token_ids[:, None]) - total
    top = top_scores[:, :k] - total
    return RowLogprobs(chosen[:, 0].to(torch.float32), top_ids[:, :k], top.to(torch.float32))


def apply_bitmask(scores: Tensor, bitmask: Tensor) -> None:
    """Set the scores of illegal tokens to -inf, in place."""
    scores.masked_fill_(~legal_tokens(bitmask, scores.shape[1]), -torch.inf)


def apply_top_k_top_p(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """Set the scores that three filters drop to -inf, in place; the best token always stays.

    The filters in their order; equals are ranked by rising token id:
    min_p keeps the tokens with best - score <= -log(min_p), rounded to float32;
    top_k keeps the k best of these;
    top_p keeps the smallest prefix of these, best first, whose share of their mass reaches p.
    Masses are exp(score - best) in units of 2**-40, whole numbers: sums are exact in any order.

    Args:
        scores: [b, vocab], already divided by the temperature.
        top_k: [b] int64, 0 is off.
        top_p: [b] float64, 1 is off.
        min_p: [b] float64 in [0, 1], 0 is off.
    """
    reach = (-min_p.log()).to(torch.float32)
    values, ids = _descending(scores)
    gap = values[:, :1] - values
    rank = torch.arange(scores.shape[1], device=scores.device)
    limit = torch.where(top_k > 0, top_k, scores.shape[1])
    kept = (gap <= reach[:, None]) & (rank < limit[:, None])

    weight = (elementary.exp(-gap) * MASS_UNIT).to(torch.int64).masked_fill(~kept, 0)
    before = weight.cumsum(dim=1) - weight
    need = weight.sum(dim=1).double() * top_p
    in_nucleus = (before.double() < need[:, None]) | (top_p >= 1.0)[:, None] | (rank == 0)

    kept = torch.zeros_like(kept).scatter_(1, ids, kept & in_nucleus)
    scores.masked_fill_(~kept, -torch.inf)


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and ids by falling score, then rising id."""
    values, ids = scores.sort(dim=1, descending=True, stable=True)
    return values, ids
