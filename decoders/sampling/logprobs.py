"""Log-probabilities under the model's own distribution, as the API reports them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from plait.decoders.contract.decoder import TokenLogprobs
from plait.kernels.backend import KernelBackend


def prompt_logprobs(
    logits: Tensor, token_ids: Sequence[int], k: int, *, backend: KernelBackend
) -> list[TokenLogprobs]:
    """Return what the model gave to each token of a text; for echo.

    Args:
        logits: [rows, vocab] float32; row i predicts token_ids[i]; not modified.
        token_ids: the tokens that did follow, one per row.
        k: alternatives to report, best first.
        backend: of the device that the logits are on.
    """
    rows = list(range(len(token_ids)))
    return logprobs_of(logits, rows, token_ids, [k] * len(rows), backend=backend)


def logprobs_of(
    logits: Tensor,
    rows: Sequence[int],
    token_ids: Sequence[int],
    ks: Sequence[int],
    *,
    backend: KernelBackend,
) -> list[TokenLogprobs]:
    """Return logprobs of token_ids[i] and of the ks[i] best tokens in logits[rows[i]]."""
    if not rows:
        return []
    index = torch.tensor(rows, dtype=torch.int64, device=logits.device)
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    k = min(max(ks), logits.shape[1])
    result = backend.row_logprobs(logits, tokens, k, rows=index)
    entries = zip(
        token_ids,
        result.chosen.tolist(),
        result.top_ids.tolist(),
        result.top.tolist(),
        ks,
        strict=True,
    )
    return [
        TokenLogprobs(token_id, logprob, tuple(zip(ids[:k], top[:k], strict=True)))
        for token_id, logprob, ids, top, k in entries
    ]


def with_named(row: Tensor, entry: TokenLogprobs, token_ids: Sequence[int]) -> TokenLogprobs:
    """Return an entry whose alternatives have these tokens as well, best first.

    Args:
        row: [vocab] the logits that the entry is of.
        entry: what is known of them.
        token_ids: to be told of, whatever their rank.
    """
    known = {token_id for token_id, _ in entry.top}
    missing = [token_id for token_id in dict.fromkeys(token_ids) if token_id not in known]
    if not missing:
        return entry
    index = torch.tensor([*missing, entry.token_id], dtype=torch.int64, device=row.device)
    *scores, own = row[index].tolist()
    added = ((i, score - own + entry.logprob) for i, score in zip(missing, scores, strict=True))
    top = sorted((*entry.top, *added), key=lambda item: -item[1])
    return msgspec.structs.replace(entry, top=tuple(top))
