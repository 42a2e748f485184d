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
OWN_PRIOR = 3.0  # tokens that the record of all sequences is worth for one of them
WINDOW = 400.0  # tokens remembered of a bucket
FORGET = 0.999  # a step without news brings a record back towards its prior
OWN_FORGET = 0.98
MOST, LEAST = 0.998, 0.001
MARGIN = 0.02  # gain below which a draft is not worth the risk of a wrong estimate


@dataclass(slots=True)
class Record:
    """How one sequence's drafts fared, by source: right, and right as far as was expected."""

    right: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)

    def factor(self, source: str) -> float:
        """Return how much more, or less, a source is right here than elsewhere."""
        return (self.right.get(source, 0.0) + OWN_PRIOR) / (
            self.expected.get(source, 0.0) + OWN_PRIOR
        )

    def fade(self) -> None:
        """Let a step pass."""
        for counts in (self.right, self.expected):
            for source in counts:
                counts[source] *= OWN_FORGET


class Estimates:
    """What the drafters of one worker are worth, learnt from all sequences."""

    def __init__(self) -> None:
        self._right: dict[tuple[str, int], float] = {}
        self._tried: dict[tuple[str, int], float] = {}

    def chance(self, source: str, raw: float, record: Record) -> float:
        """Return the probability that a token of a source is right, given those before it."""
        key = source, _bucket(raw)
        right, tried = self._right.get(key, 0.0), self._tried.get(key, 0.0)
        chance = (right + PRIOR * raw) / (tried + PRIOR) * record.factor(source)
        return min(max(chance, LEAST), MOST)

    def learn(self, tree: DraftTree, reached: Sequence[int], record: Record, vocab: int) -> None:
        """Learn from a verdict: of each row that was reached, the children were tried.

        Tokens beyond the vocabulary are no candidates, so nothing is learnt of them.
        """
        right = {row - 1 for row in reached if row > 0}
        tried_rows = {row - 1 for row in reached}
        for node, parent in enumerate(tree.parents):
            if parent in tried_rows and tree.token_ids[node] < vocab:
                self._count(tree, node, node in right, record)

    def fade(self) -> None:
        """Let a step pass."""
        for counts in (self._right, self._tried):
            for key in counts:
                counts[key] *= FORGET

    def _count(self, tree: DraftTree, node: int, is_right: bool, record: Record) -> None:
        source = tree.sources[node]
        key = source, _bucket(tree.raw[node])
        keep = min(1.0, WINDOW / (self._tried.get(key, 0.0) + 1))
        self._right[key] = self._right.get(key, 0.0) * keep + is_right
        self._tried[key] = self._tried.get(key, 0.0) * keep + 1
        expected = tree.chances[node] / max(record.factor(source), LEAST)
        record.right[source] = record.right.get(source, 0.0) + is_right
        record.expected[source] = record.expected.get(source, 0.0) + min(expected, 1.0)


def is_worthwhile(num_drafting: int, room: DraftBudget, costs: CostCurve, others: int = 0) -> bool:
    """Tell whether any number of drafts, all of them certain, would pay for their rows.

    Law: where this says no, `choose` keeps nothing, whatever it is offered.
    """
    most = min(room.drafts, num_drafting * MAX_DRAFT)
    if most <= 0:
        return False
    seconds = costs.seconds(room.fed + most)[max(room.fed, 1) :]
    return _most(np.arange(len(seconds)) + (num_drafting + others), seconds) > 0


def seconds_a_token(num_sequences: int, room: DraftBudget, costs: CostCurve) -> float:
    """Return what a token costs without drafts."""
    fed = max(room.fed, 1)
    return float(costs.seconds(fed)[fed]) / max(num_sequences, 1)


def tokens_a_row(rows: int, num_sequences: int, room: DraftBudget, costs: CostCurve) -> float:
    """Return what each of some draft rows costs, in tokens that its time would give without it."""
    if not rows:
        return 0.0
    fed = max(room.fed, 1)
    seconds = costs.seconds(fed + rows)
    return float(seconds[fed + rows] / seconds[fed] - 1) * max(num_sequences, 1) / rows


def choose(
    trees: Sequence[DraftTree],
    always: Sequence[bool],
    room: DraftBudget,
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
    left = room.drafts
    for i, (tree, fixed) in enumerate(zip(trees, always, strict=True)):
        if fixed:
            kept[i] = list(range(min(len(tree), left)))
            left -= len(kept[i])
    offered = [
        (-survival, i, node)
        for i, (tree, fixed) in enumerate(zip(trees, always, strict=True))
        if not fixed
        for node, survival in enumerate(tree.survivals())
    ]
    offered.sort()
    fed = room.fed + sum(map(len, kept))
    certain = [sum(tree.survivals()[: len(n)]) for tree, n in zip(trees, kept, strict=True) if n]
    base = len(trees) + others + sum(certain)
    best = np.array([-entry[0] for entry in offered[: max(left, 0)]])
    budget = _budget(best, base, fed, costs)
    for _, i, node in offered[:budget]:
        kept[i].append(node)
    return [sorted(nodes) for nodes in kept]


def _budget(survivals: NDArray[np.float64], base: float, fed: int, costs: CostCurve) -> int:
    """Return how many of the best drafts maximise tokens a second."""
    if not len(survivals):
        return 0
    seconds = costs.seconds(fed + len(survivals))[max(fed, 1) :]
    tokens = base + np.concatenate([[0.0], np.cumsum(survivals)])[: len(seconds)]
    return _most(tokens, seconds)


def _most(tokens: NDArray[Any], seconds: NDArray[np.float64]) -> int:
    """Return how many rows more give most tokens a second; 0 unless that beats none by MARGIN."""
    pace = tokens / seconds
    best = int(pace.argmax())
    return best if pace[best] >= (1 + MARGIN) * pace[0] else 0


def _bucket(raw: float) -> int:
    return min(int(raw * BUCKETS), BUCKETS - 1)
