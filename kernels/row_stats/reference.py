"""The row operations in plain torch: oracle of the C++, path of CUDA and compiler-less installs."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels.noise import elementary
from plait.kernels.noise.reference import legal_tokens

MASS_UNIT = 2.0**40


def row_stats(scores: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return top-2 ids [b, 2], top-2 scores [b, 2] and logsumexp, entropy [b, 2]."""
    top_scores, top_ids = _descending(scores)
    exact = scores.double()
    total = exact.logsumexp(dim=1)
    nats = torch.full_like(total, torch.nan)
    if entropy:
        logprobs = exact - total[:, None]
        nats = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(dim=1)
    stats = torch.stack([total, nats], dim=1).to(torch.float32)
    return top_ids[:, :2], top_scores[:, :2], stats


def legal_mass(
    scores: Tensor, bitmask: Tensor, temperatures: Tensor, rows: Tensor | None
) -> Tensor:
    """See plait.kernels.row_stats.legal_mass."""
    values = scores if rows is None else scores[rows]
    exact = values.double() / temperatures[:, None]
    legal = exact.masked_fill(~legal_tokens(bitmask, scores.shape[1]), -torch.inf)
    mass = legal.logsumexp(dim=1) - exact.logsumexp(dim=1)
    return mass.nan_to_num(nan=-torch.inf, neginf=-torch.inf).to(torch.float32)


def logprobs(
    scores: Tensor, token_ids: Tensor, k: int, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logprobs of token_ids [b], top-k ids [b, k] and their logprobs [b, k]."""
    values = scores if rows is None else scores[rows]
    total = values.double().logsumexp(dim=1, keepdim=True)
    top_scores, top_ids = _descending(values)
    chosen = values.gather(1, token_ids[:, None]) - total
    top = top_scores[:, :k] - total
    return chosen[:, 0].to(torch.float32), top_ids[:, :k], top.to(torch.float32)


def apply_bitmask(scores: Tensor, bitmask: Tensor) -> None:
    """See plait.kernels.row_stats.apply_bitmask."""
    scores.masked_fill_(~legal_tokens(bitmask, scores.shape[1]), -torch.inf)


def truncate(scores: Tensor, top_k: Tensor, top_p: Tensor, reach: Tensor) -> None:
    """See plait.kernels.row_stats.truncate; reach [b] float32 is -log(min_p)."""
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
