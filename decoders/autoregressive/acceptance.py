"""Where a lossy rule of acceptance overrules the exact one, if a request has named such a rule.

Whatever it accepts is legal: tokens that have no probability in the request's distribution are
never offered to it, and guesses are drawn under the constraint, behind the text so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.decoders.autoregressive.bitmask import next_bitmask
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.sampling.sampler import Draws
from plait.decoders.speculative.lossy.acceptance_rule import AcceptanceRule
from plait.decoders.speculative.tree import DraftTree


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """One sequence's rows of a pass, and what was drawn there; node i owns row first + 1 + i."""

    draws: Draws
    logits: Tensor  # [rows, vocab]
    first: int

    def of(self, node: int) -> int:
        """Return the row that follows a node; -1 is the text."""
        return self.first + 1 + node


def apply_acceptance_rule(
    rule: AcceptanceRule, state: AutoregressiveState, tree: DraftTree, node: int, rows: DrawnRows
) -> None:
    """Replace what was drawn behind a node by one of its children, if the rule accepts one."""
    row, vocab_size = rows.of(node), rows.logits.shape[1]
    children = [
        token
        for token, parent in zip(tree.token_ids, tree.parents, strict=True)
        if parent == node and token < vocab_size
    ]
    if not children or state.sampling.greedy or rows.draws.token_ids[row] in children:
        return
    distribution = _law(state, rows.logits[row : row + 1])
    offered = [token for token in children if float(distribution[token]) > 0]
    picked = rule.select(distribution, offered) if offered else None
    if picked is not None:
        report = state.sampler.report(rows.logits[row : row + 1], [state.sampling], [picked])
        rows.draws.token_ids[row], rows.draws.logprobs[row] = picked, report[0]


def accept_unverified(
    rule: AcceptanceRule, state: AutoregressiveState, tree: DraftTree, node: int, rows: DrawnRows
) -> int | None:
    """Return the input beyond the vocabulary behind a node whose guess may stand, if one does.

    The text ends with the token drawn at the node's row, which the guess has not seen.
    """
    vocab_size = rows.logits.shape[1]
    behind = (i for i, parent in enumerate(tree.parents) if parent == node)
    found = next((i for i in behind if tree.token_ids[i] >= vocab_size), None)
    if found is None:
        return None
    row, before = rows.of(found), state.sampling.text[-1]
    logits = rows.logits[row : row + 1]
    drawn = state.sampler.sample(
        logits, [state.sampling], next_bitmask(state.constraint, vocab_size)
    )
    if not rule.accepts_unverified(_law(state, logits), drawn.token_ids[0], before):
        return None
    rows.draws.token_ids[row] = drawn.token_ids[0]
    rows.draws.logprobs[row] = drawn.logprobs[0]
    rows.draws.log_mass[row] = drawn.log_mass[0]
    return found


def _law(state: AutoregressiveState, logits: Tensor) -> Tensor:
    """Return [vocab]: the probabilities that the request gives to the tokens of one row [1, v]."""
    scores = state.sampler.scores(
        logits, [state.sampling], next_bitmask(state.constraint, logits.shape[1])
    )
    return torch.softmax(scores[0], dim=0)
