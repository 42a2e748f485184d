"""PPD's dynamic sparse trees: which candidates to feed, and which of them get prompt tokens.

A prompt token behind a node guesses the tokens that follow if that node is the last one accepted.
So a row can be a candidate of this step or a prompt token for the next step. In state s the last
accepted node had s prompt tokens, so there are guesses for s positions.

A[d][i] is the probability that the guess of rank i at distance d + 1 is right. f(s) is the expected
number of accepted candidates in state s: the sum of the products of A along their paths. Law: rows
are sorted by their value, and no row has a higher value than its parent.

Source: PPD, arXiv:2405.18628, section 4 (dynamic sparse tree). Differs in that there is a state
without guesses, because the draft budget may leave out the prompt tokens, and in that every prompt
token has a value, so that the budget can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product

import numpy as np
from numpy.typing import NDArray

Accuracy = NDArray[np.float64]  # A: [distances, ranks]
ROOT = -1
FIRST_STATE = 10  # candidates of state 1, as published, if the tree is large enough
PROBES = 8  # numbers of candidates that are tried for each further state


@dataclass(frozen=True, slots=True)
class PromptTreeRow:
    """One row of a tree."""

    parent: int  # row; ROOT: the end of the text
    depth: int  # of a candidate, from 0; of a prompt token, its number in the chain
    rank: int  # of a candidate among the guesses for its position; -1: a prompt token
    value: float  # expected accepted tokens: in this step, or by a prompt token in the next

    @property
    def is_prompt(self) -> bool:
        """Whether the row is a prompt token."""
        return self.rank < 0


@dataclass(frozen=True, slots=True)
class PromptTree:
    """The rows fed in one state, by falling value."""

    rows: tuple[PromptTreeRow, ...]
    accepted: float  # f: the expected number of accepted candidates
    transitions: tuple[float, ...]  # [states] probabilities of the next state

    def acceptance_prob(self, row: int) -> float:
        """Return the value of a row as a share of its parent's value."""
        parent = self.rows[row].parent
        above = 1.0 if parent == ROOT else self.rows[parent].value
        return self.rows[row].value / above if above > 0 else 0.0


def trees_for(accuracy: Accuracy, length: int) -> tuple[PromptTree, ...]:
    """Return the trees of states 0..distances with the most accepted tokens in the long run.

    Args:
        accuracy: A, which should fall along each axis.
        length: the most rows of a tree.
    Cost: PROBES ** (distances - 1) trees are built.
    """
    distances = len(accuracy)
    most = max((length - distances) // 2, 1)  # every candidate has at least one prompt token
    sizes = [range(min(FIRST_STATE, most), min(FIRST_STATE, most) + 1)]
    low = min(max(length // (distances + 1), 1), most)
    step = max((most - low) // (PROBES - 1), 1)
    sizes += [range(low, most + 1, step)] * (distances - 1)
    built = [build_trees(accuracy, each, length) for each in product(*sizes)]
    return max(built, key=tokens_per_step)


def build_trees(accuracy: Accuracy, sizes: Sequence[int], length: int) -> tuple[PromptTree, ...]:
    """Return the trees of all states; state s > 0 has sizes[s - 1] candidates, state 0 none."""
    candidates: list[list[PromptTreeRow]] = [[]]
    candidates += [best_candidates(accuracy[: s + 1], size) for s, size in enumerate(sizes)]
    gains = np.diff([sum(row.value for row in rows) for rows in candidates])
    gains = np.minimum.accumulate(
        np.maximum(gains, 0.0)
    )  # no prompt token has a higher value than the one before
    return tuple(_with_prompts(rows, gains, length) for rows in candidates)


def best_candidates(accuracy: Accuracy, size: int) -> list[PromptTreeRow]:
    """Return the `size` candidates with the highest path probabilities, best first."""
    found: list[PromptTreeRow] = []
    offered: list[tuple[float, int, int, int]] = [(-float(accuracy[0, 0]), ROOT, 0, 0)]
    while offered and len(found) < size:
        value, parent, depth, rank = heappop(offered)
        above = 1.0 if parent == ROOT else found[parent].value
        if rank + 1 < accuracy.shape[1]:
            sibling = -above * float(accuracy[depth, rank + 1])
            heappush(offered, (max(sibling, value), parent, depth, rank + 1))
        if depth + 1 < len(accuracy):
            child = value * float(accuracy[depth + 1, 0])
            heappush(offered, (child, len(found), depth + 1, 0))
        found.append(PromptTreeRow(parent, depth, rank, -value))
    return found


def last_accepted_probs(rows: Sequence[PromptTreeRow]) -> NDArray[np.float64]:
    """Return [1 + rows]: P(nothing is accepted), then P(row i is the last accepted one)."""
    acceptance_probs = np.array([1.0, *(row.value for row in rows)])
    for row in rows:
        acceptance_probs[row.parent + 1] -= row.value
    acceptance_probs.clip(min=0.0, out=acceptance_probs)
    return acceptance_probs


def _with_prompts(
    rows: Sequence[PromptTreeRow], gains: NDArray[np.float64], length: int
) -> PromptTree:
    """Give prompt tokens to the text and to all rows, then remove the least valuable ones."""
    last = last_accepted_probs(rows)
    most = len(gains)
    counts = [most] * len(last)  # prompt tokens of the text, and of each row
    excess = len(rows) + sum(counts) - length
    for _ in range(max(excess, 0)):
        losses = [
            (acceptance_prob * gains[count - 1], i)
            for i, (acceptance_prob, count) in enumerate(zip(last, counts, strict=True))
            if i > 0 and count > 1
        ]
        if not losses:
            break
        counts[min(losses)[1]] -= 1
    transitions = np.zeros(most + 1)
    np.add.at(transitions, counts, last)
    accepted = sum(row.value for row in rows)
    return PromptTree(
        _sorted(rows, last, counts, gains), accepted, tuple(transitions / transitions.sum())
    )


def _sorted(
    rows: Sequence[PromptTreeRow],
    last: NDArray[np.float64],
    counts: Sequence[int],
    gains: NDArray[np.float64],
) -> tuple[PromptTreeRow, ...]:
    """Return candidates and prompt tokens by falling value, parents first."""
    joined = list(rows)
    for node, (acceptance_prob, count) in enumerate(zip(last.tolist(), counts, strict=True)):
        parent = node - 1
        for k in range(count):
            joined.append(PromptTreeRow(parent, k, -1, acceptance_prob * float(gains[k])))
            parent = len(joined) - 1
    order = sorted(range(len(joined)), key=lambda i: (-joined[i].value, i))
    renumbered = {ROOT: ROOT} | {old: new for new, old in enumerate(order)}
    return tuple(
        PromptTreeRow(renumbered[row.parent], row.depth, row.rank, row.value)
        for row in (joined[i] for i in order)
    )


def stationary_distribution(trees: Sequence[PromptTree]) -> NDArray[np.float64]:
    """Return the stationary distribution over the states."""
    transitions = np.array([tree.transitions for tree in trees])
    states = len(trees)
    system = np.vstack([transitions.T - np.eye(states), np.ones(states)])
    shares: NDArray[np.float64] = np.linalg.lstsq(system, np.eye(states + 1)[states], rcond=None)[0]
    return shares


def tokens_per_step(trees: Sequence[PromptTree]) -> float:
    """Return the mean tokens of a step, including the one sampled at its end."""
    return 1.0 + float(stationary_distribution(trees) @ [tree.accepted for tree in trees])
