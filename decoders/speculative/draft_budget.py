"""Which draft tokens are worth feeding: acceptance estimates, and how many a step feeds.

A step that feeds `fed` rows for n sequences emits n tokens in T(fed) seconds. B draft rows more
emit the sum of their path probabilities more, in T(fed + B) seconds. A step feeds the B, within the
draft budget, that gives the most tokens a second, or 0 if the best B gains less than MIN_GAIN over
no drafts. So drafts become shorter as the batch fills (T rises with every row) and as drafts are
rejected (path probabilities fall), without a switch.

Law: the selected nodes of a tree include their parents. Nothing here can change a text.
Source: docs/speculation.md; the rule of vLLM's adaptive verification, applied to all drafters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DraftBudget
from plait.decoders.speculative.config import MAX_DRAFT
from plait.decoders.speculative.tree import DraftTree

BUCKETS = 8  # of stated probabilities; acceptance is counted for each
PRIOR = 8.0  # observations that the stated probability is worth
SEQUENCE_PRIOR = 3.0  # observations that the estimate over all sequences is worth for one of them
MAX_COUNT = 400.0  # observations remembered of a bucket
DECAY = 0.999  # per step; without news an estimate returns to its prior
SEQUENCE_DECAY = 0.98
MAX_PROB, MIN_PROB = 0.998, 0.001
MIN_GAIN = 0.02  # below this gain, a draft is not worth the risk of a wrong estimate


@dataclass(slots=True)
class SequenceAcceptance:
    """Verified draft tokens of one sequence, and how many were right and were to be, by drafter."""

    verified: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)  # to be accepted, as elsewhere

    def here(self, source: str, elsewhere: float) -> float:
        """Return the probability of an acceptance, from that over all sequences.

        What there are more of than expected, acceptances or rejections, makes the other rarer in
        proportion. So a few lucky tokens make nothing certain: drafts would become far too long,
        since the errors of their tokens multiply.
        """
        verified, accepted = self.verified.get(source, 0.0), self.accepted.get(source, 0.0)
        expected = self.expected.get(source, 0.0)
        if accepted < expected:
            return elsewhere * (accepted + SEQUENCE_PRIOR) / (expected + SEQUENCE_PRIOR)
        rarer = (verified - accepted + SEQUENCE_PRIOR) / (verified - expected + SEQUENCE_PRIOR)
        return 1.0 - (1.0 - elsewhere) * rarer

    def count(self, source: str, elsewhere: float, *, is_accepted: bool) -> None:
        """Take note of a verified token."""
        for counts, amount in (
            (self.verified, 1.0),
            (self.accepted, float(is_accepted)),
            (self.expected, elsewhere),
        ):
            counts[source] = counts.get(source, 0.0) + amount

    def decay(self) -> None:
        """Let one step pass."""
        for counts in (self.verified, self.accepted, self.expected):
            for source in counts:
                counts[source] *= SEQUENCE_DECAY

    def copy(self) -> SequenceAcceptance:
        """Return an independent copy."""
        return SequenceAcceptance(self.verified.copy(), self.accepted.copy(), self.expected.copy())


class AcceptanceEstimates:
    """How often the drafters' tokens are accepted, learnt from all sequences of a worker."""

    def __init__(self) -> None:
        self._accepted: dict[tuple[str, int], float] = {}
        self._verified: dict[tuple[str, int], float] = {}

    def acceptance_prob(
        self, source: str, stated_prob: float, sequence: SequenceAcceptance
    ) -> float:
        """Return the probability that a draft token is accepted, given that its parent was."""
        mean = self._mean(source, stated_prob)
        return min(max(sequence.here(source, mean), MIN_PROB), MAX_PROB)

    def learn(
        self,
        tree: DraftTree,
        accepted_rows: Sequence[int],
        sequence: SequenceAcceptance,
        vocab_size: int,
    ) -> None:
        """Learn from a verified draft: only the children of accepted rows were verified.

        Ids beyond the vocabulary are never sampled, so nothing is learnt of them.
        """
        accepted = {row - 1 for row in accepted_rows if row > 0}
        verified_parents = {row - 1 for row in accepted_rows}
        for node, parent in enumerate(tree.parents):
            if parent in verified_parents and tree.token_ids[node] < vocab_size:
                self._count(tree, node, node in accepted, sequence)

    def decay(self) -> None:
        """Let one step pass."""
        for counts in (self._accepted, self._verified):
            for key in counts:
                counts[key] *= DECAY

    def _count(
        self, tree: DraftTree, node: int, is_accepted: bool, sequence: SequenceAcceptance
    ) -> None:
        source, stated_prob = tree.sources[node], tree.stated_probs[node]
        sequence.count(source, self._mean(source, stated_prob), is_accepted=is_accepted)
        key = source, _bucket(stated_prob)
        keep = min(1.0, MAX_COUNT / (self._verified.get(key, 0.0) + 1))
        self._accepted[key] = self._accepted.get(key, 0.0) * keep + is_accepted
        self._verified[key] = self._verified.get(key, 0.0) * keep + 1

    def _mean(self, source: str, stated_prob: float) -> float:
        """Return how often a drafter's tokens of about this stated probability are accepted."""
        key = source, _bucket(stated_prob)
        accepted, verified = self._accepted.get(key, 0.0), self._verified.get(key, 0.0)
        return (accepted + PRIOR * stated_prob) / (verified + PRIOR)


def can_pay(num_drafting: int, budget: DraftBudget, costs: CostCurve, others: int = 0) -> bool:
    """Tell whether any number of drafts would pay for their rows if all were accepted.

    Law: if this is False, `select_nodes` selects nothing, whatever the trees are.
    """
    most = min(budget.drafts, num_drafting * MAX_DRAFT)
    if most <= 0:
        return False
    seconds = costs.seconds(budget.fed + most)[max(budget.fed, 1) :]
    return _best_num_rows(np.arange(len(seconds)) + (num_drafting + others), seconds) > 0


def seconds_per_token(num_sequences: int, budget: DraftBudget, costs: CostCurve) -> float:
    """Return the time of a token without drafts."""
    fed = max(budget.fed, 1)
    return float(costs.seconds(fed)[fed]) / max(num_sequences, 1)


def tokens_per_row(rows: int, num_sequences: int, budget: DraftBudget, costs: CostCurve) -> float:
    """Return the cost of each of `rows` draft rows: tokens emitted in its time without drafts."""
    if not rows:
        return 0.0
    fed = max(budget.fed, 1)
    seconds = costs.seconds(fed + rows)
    return float(seconds[fed + rows] / seconds[fed] - 1) * max(num_sequences, 1) / rows


def select_nodes(
    trees: Sequence[DraftTree],
    always: Sequence[bool],
    budget: DraftBudget,
    costs: CostCurve,
    others: int = 0,
) -> list[list[int]]:
    """Return for each tree the nodes that are worth their rows, in rising order.

    Args:
        trees: one per sequence that drafts; may be empty.
        always: whether a sequence's drafts are fed whatever they cost, within the budget.
        budget: of the step.
        costs: of a pass.
        others: sequences of the step without a draft.
    """
    kept: list[list[int]] = [[] for _ in trees]
    if not any(map(len, trees)):
        return kept
    left = budget.drafts
    for i, (tree, fixed) in enumerate(zip(trees, always, strict=True)):
        if fixed:
            kept[i] = list(range(min(len(tree), left)))
            left -= len(kept[i])
    offered = [
        (-path_prob, i, node)
        for i, (tree, fixed) in enumerate(zip(trees, always, strict=True))
        if not fixed
        for node, path_prob in enumerate(tree.path_probs())
    ]
    offered.sort()
    fed = budget.fed + sum(map(len, kept))
    certain = [sum(tree.path_probs()[: len(n)]) for tree, n in zip(trees, kept, strict=True) if n]
    base = len(trees) + others + sum(certain)
    best = np.array([-entry[0] for entry in offered[: max(left, 0)]])
    for _, i, node in offered[: _num_drafts(best, base, fed, costs)]:
        kept[i].append(node)
    return [sorted(nodes) for nodes in kept]


def _num_drafts(path_probs: NDArray[np.float64], base: float, fed: int, costs: CostCurve) -> int:
    """Return how many of the best drafts give the most tokens a second."""
    if not len(path_probs):
        return 0
    seconds = costs.seconds(fed + len(path_probs))[max(fed, 1) :]
    tokens = base + np.concatenate([[0.0], np.cumsum(path_probs)])[: len(seconds)]
    return _best_num_rows(tokens, seconds)


def _best_num_rows(tokens: NDArray[Any], seconds: NDArray[np.float64]) -> int:
    """Return the index with the most tokens a second; 0 unless it beats index 0 by MIN_GAIN."""
    rate = tokens / seconds
    best = int(rate.argmax())
    return best if rate[best] >= (1 + MIN_GAIN) * rate[0] else 0


def _bucket(stated_prob: float) -> int:
    return min(int(stated_prob * BUCKETS), BUCKETS - 1)
