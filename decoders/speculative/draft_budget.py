"""Which drafts are worth their rows: survival estimates, and the budget of a step.

A step that feeds `fed` rows for n sequences emits n tokens in T(fed) seconds. B draft rows more
emit the sum of their survivals more, in T(fed + B). The budget is the B that maximises tokens a
second; where none is better than no drafts by MARGIN, there are none. So drafts fade as the batch
fills (T rises with every row) and as they miss (survivals fall), without a switch.

Law: what is kept of a tree holds its own parents. Nothing here can change a text.
Source: docs/speculation.md; the same rule as vLLM's adaptive verification, over all drafters.
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

BUCKETS = 8  # of what drafters say of their tokens, each with a record of how that came out
PRIOR = 8.0  # tokens that a drafter's own word is worth
SEQUENCE_PRIOR = 3.0  # tokens that the record of all sequences is worth for one of them
MAX_COUNT = 400.0  # tokens remembered of a bucket
DECAY = 0.999  # a step without news brings a record back towards its prior
SEQUENCE_DECAY = 0.98
MAX_PROB, MIN_PROB = 0.998, 0.001
MIN_GAIN = 0.02  # gain below which a draft is not worth the risk of a wrong estimate


@dataclass(slots=True)
class SequenceAcceptance:
    """How one sequence's drafts fared, by source: right, and right as far as was expected."""

    right: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)

    def factor(self, source: str) -> float:
        """Return how much more, or less, a source is right here than elsewhere."""
        return (self.right.get(source, 0.0) + SEQUENCE_PRIOR) / (
            self.expected.get(source, 0.0) + SEQUENCE_PRIOR
        )

    def fade(self) -> None:
        """Let a step pass."""
        for counts in (self.right, self.expected):
            for source in counts:
                counts[source] *= SEQUENCE_DECAY


class AcceptanceEstimates:
    """What the drafters of one worker are worth, learnt from all sequences."""

    def __init__(self) -> None:
        self._right: dict[tuple[str, int], float] = {}
        self._tried: dict[tuple[str, int], float] = {}

    def acceptance_prob(
        self, source: str, stated_probs: float, record: SequenceAcceptance
    ) -> float:
        """Return the probability that a token of a source is right, given those before it."""
        key = source, _bucket(stated_probs)
        right, tried = self._right.get(key, 0.0), self._tried.get(key, 0.0)
        acceptance_prob = (right + PRIOR * stated_probs) / (tried + PRIOR) * record.factor(source)
        return min(max(acceptance_prob, MIN_PROB), MAX_PROB)

    def learn(
        self, tree: DraftTree, accepted_rows: Sequence[int], record: SequenceAcceptance, vocab: int
    ) -> None:
        """Learn from a verdict: of each row that was reached, the children were tried.

        Tokens beyond the vocabulary are no candidates, so nothing is learnt of them.
        """
        right = {row - 1 for row in accepted_rows if row > 0}
        tried_rows = {row - 1 for row in accepted_rows}
        for node, parent in enumerate(tree.parents):
            if parent in tried_rows and tree.token_ids[node] < vocab:
                self._count(tree, node, node in right, record)

    def fade(self) -> None:
        """Let a step pass."""
        for counts in (self._right, self._tried):
            for key in counts:
                counts[key] *= DECAY

    def _count(
        self, tree: DraftTree, node: int, is_right: bool, record: SequenceAcceptance
    ) -> None:
        source = tree.sources[node]
        key = source, _bucket(tree.stated_probs[node])
        keep = min(1.0, MAX_COUNT / (self._tried.get(key, 0.0) + 1))
        self._right[key] = self._right.get(key, 0.0) * keep + is_right
        self._tried[key] = self._tried.get(key, 0.0) * keep + 1
        expected = tree.acceptance_probs[node] / max(record.factor(source), MIN_PROB)
        record.right[source] = record.right.get(source, 0.0) + is_right
        record.expected[source] = record.expected.get(source, 0.0) + min(expected, 1.0)


def can_pay(num_drafting: int, budget: DraftBudget, costs: CostCurve, others: int = 0) -> bool:
    """Tell whether any number of drafts, all of them certain, would pay for their rows.

    Law: where this says no, `select_nodes` keeps nothing, whatever it is offered.
    """
    most = min(budget.drafts, num_drafting * MAX_DRAFT)
    if most <= 0:
        return False
    seconds = costs.seconds(budget.fed + most)[max(budget.fed, 1) :]
    return _most(np.arange(len(seconds)) + (num_drafting + others), seconds) > 0


def seconds_per_token(num_sequences: int, budget: DraftBudget, costs: CostCurve) -> float:
    """Return what a token costs without drafts."""
    fed = max(budget.fed, 1)
    return float(costs.seconds(fed)[fed]) / max(num_sequences, 1)


def tokens_per_row(rows: int, num_sequences: int, budget: DraftBudget, costs: CostCurve) -> float:
    """Return what each of some draft rows costs, in tokens that its time would give without it."""
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
    """Return the nodes of each tree that are worth their rows.

    Args:
        trees: one per sequence; sequences that draft nothing have an empty one.
        always: sequences whose drafts are fed whatever they cost, as far as there is room.
        room: of the step.
        costs: of a pass.
        others: sequences that are in the step, too, and have no drafters.
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
    num_drafts = _budget(best, base, fed, costs)
    for _, i, node in offered[:num_drafts]:
        kept[i].append(node)
    return [sorted(nodes) for nodes in kept]


def _budget(path_probs: NDArray[np.float64], base: float, fed: int, costs: CostCurve) -> int:
    """Return how many of the best drafts maximise tokens a second."""
    if not len(path_probs):
        return 0
    seconds = costs.seconds(fed + len(path_probs))[max(fed, 1) :]
    tokens = base + np.concatenate([[0.0], np.cumsum(path_probs)])[: len(seconds)]
    return _most(tokens, seconds)


def _most(tokens: NDArray[Any], seconds: NDArray[np.float64]) -> int:
    """Return how many rows more give most tokens a second; 0 unless that beats none by MARGIN."""
    pace = tokens / seconds
    best = int(pace.argmax())
    return best if pace[best] >= (1 + MIN_GAIN) * pace[0] else 0


def _bucket(stated_probs: float) -> int:
    return min(int(stated_probs * BUCKETS), BUCKETS - 1)
