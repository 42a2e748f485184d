"""The tokens that may follow a text, for searches that choose among them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import inf

import torch
from torch import Tensor

from plait.decoders.autoregressive.bitmask import next_bitmask
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.decoder import Alternative, FinishReason


def list_alternatives(state: AutoregressiveState, logits: Tensor) -> Sequence[Alternative]:
    """Return the best tokens that may follow, best first.

    Bans, truncation, the constraint, and the budget within which the answer must end are applied;
    the log-probabilities are the model's own, before all of these.

    Args:
        state: at the end of the text; it stays as it is.
        logits: [1, vocab] that follow it.
    """
    count = state.request.search.num_alternatives
    logprobs = torch.log_softmax(logits[0].float(), dim=0)
    if state.is_closing:
        found = [_alternative(state, state.next_closing(), logprobs)]
        return [each for each in found if each is not None]
    bitmask = next_bitmask(state.constraint, logits.shape[1])
    scores = state.sampler.scores(logits, [state.sampling], bitmask)[0]
    legal = logprobs.masked_fill(scores == -torch.inf, -torch.inf)
    limit = count
    while True:
        best = torch.topk(legal, min(limit, len(legal)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        tried = (_alternative(state, token, logprobs) for token, value in pairs if value > -inf)
        alternatives = list(islice((each for each in tried if each is not None), count))
        if len(alternatives) == count or limit >= len(legal):
            return alternatives
        limit *= 8  # after some of the best the answer could not end in time


def _alternative(state: AutoregressiveState, token_id: int, logprobs: Tensor) -> Alternative | None:
    """Return what a token would do; None: the answer could not end in time."""
    logprob = float(logprobs[token_id])
    if token_id in state.stop_token_ids:
        return Alternative(token_id, logprob, "stop", is_stop=True)
    is_last = state.remaining <= 1
    constraint = state.constraint
    if constraint is None:
        return Alternative(token_id, logprob, "length" if is_last else None)
    if not constraint.accept_token(token_id):
        return None
    fits = constraint.min_tokens() < state.remaining
    is_complete = constraint.is_terminated() or (is_last and constraint.is_accepting())
    constraint.rollback(1)
    finish: FinishReason | None = "stop" if is_complete else "length" if is_last else None
    return Alternative(token_id, logprob, finish) if fits else None
