"""PPD's dynamic sparse trees: which guesses to feed, and behind which of them to ask again.

A prompt row behind a node guesses what follows should that node be the last one accepted; so rows
compete twice, as candidates now and as prompts for the next step. State s means that s prompt rows
hung on the node that was accepted last: guesses for s places are at hand.

A[d][i] is the chance that the guess of rank i, d + 1 places ahead, is right. f(s) is the number of
tokens that state s's candidates are expected to give: the sum of the products of A along their
paths. Law: rows are sorted by what they are worth, and none is worth more than its parent.

Source: PPD, arXiv:2405.18628, section 4 (dynamic sparse tree). What differs: a state without
guesses exists, since the economy may have cut the prompts; and every prompt row carries its worth,
so that it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product

import numpy as np
from numpy.typing import NDArray

Accuracy = NDArray[np.float64]  # [distances, ranks]
ROOT = -1
FIRST_STATE = 10  # candidates of state 1, as published, where there is room
PROBES = 8  # sizes tried of each further state's tree


@dataclass(frozen=True, slots=True)
class PromptTreeRow:
    """One row of a tree."""

    parent: int  # row; ROOT: the text
    depth: int  # a candidate's place behind the text, from 0; a prompt's number in its chain
    rank: int  # of the candidate among the guesses for its place; -1: a prompt
    value: float  # tokens that it is expected to give: now, or as a prompt in the next step

    @property
    def is_prompt(self) -> bool:
        """Whether the row is a prompt embedding."""
        return self.rank < 0


@dataclass(frozen=True, slots=True)
class PromptTree:
    """What is fed in one state, best rows first."""

    rows: tuple[PromptTreeRow, ...]
    accepted: float  # f: candidates that are expected to be accepted
    moves: tuple[float, ...]  # [states] probabilities of the next state

    def acceptance_prob(self, row: int) -> float:
        """Return what a row is worth as a share of its parent's worth."""
        parent = self.rows[row].parent
        above = 1.0 if parent == ROOT else self.rows[parent].value
        return self.rows[row].value / above if above > 0 else 0.0


def trees_for(accuracy: Accuracy, length: int) -> tuple[PromptTree, ...]:
    """Return the trees of states 0..distances that accept the most in the long run.

    Args:
        accuracy: A, falling along each axis or nearly so.
        length: rows of a tree, at most.
    Cost: PROBES ** (distances - 1) trees are built.
    """
    distances = len(accuracy)
    most = max((length - distances) // 2, 1)  # every candidate carries one prompt at least
    sizes = [range(min(FIRST_STATE, most), min(FIRST_STATE, most) + 1)]
    low = min(max(length // (distances + 1), 1), most)
    step = max((most - low) // (PROBES - 1), 1)
    sizes += [range(low, most + 1, step)] * (distances - 1)
    built = [build_trees(accuracy, each, length) for each in product(*sizes)]
    return max(built, key=tokens_per_step)


def build_trees(accuracy: Accuracy, sizes: Sequence[int], length: int) -> tuple[PromptTree, ...]:
    """Return the trees of all states, whose candidates number 0 and then `sizes`."""
    candidates: list[list[PromptTreeRow]] = [[]]
    candidates += [best_candidates(accuracy[: s + 1], size) for s, size in enumerate(sizes)]
    gains = np.diff([sum(row.value for row in rows) for rows in candidates])
    gains = np.minimum.accumulate(np.maximum(gains, 0.0))  # a prompt is worth no more than the last
    return tuple(_with_prompts(rows, gains, length) for rows in candidates)


def best_candidates(accuracy: Accuracy, size: int) -> list[PromptTreeRow]:
    """Return the `size` nodes whose paths are the most probable, best first."""
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
    """Return [1 + rows]: that nothing is accepted, or this row last. They sum to 1."""
    acceptance_probs = np.array([1.0, *(row.value for row in rows)])
    for row in rows:
        acceptance_probs[row.parent + 1] -= row.value
    acceptance_probs.clip(min=0.0, out=acceptance_probs)
    return acceptance_probs


def _with_prompts(
    rows: Sequence[PromptTreeRow], gains: NDArray[np.float64], length: int
) -> PromptTree:
    """Hang prompts on the text and on all rows, and take the least useful away again."""
    last = last_accepted_probs(rows)
    most = len(gains)
    counts = [most] * len(last)  # of the text, and of each row
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
    moves = np.zeros(most + 1)
    np.add.at(moves, counts, last)
    accepted = sum(row.value for row in rows)
    return PromptTree(_sorted(rows, last, counts, gains), accepted, tuple(moves / moves.sum()))


def _sorted(
    rows: Sequence[PromptTreeRow],
    last: NDArray[np.float64],
    counts: Sequence[int],
    gains: NDArray[np.float64],
) -> tuple[PromptTreeRow, ...]:
    """Return candidates and prompts in one list, by falling value, parents first."""
    joined = list(rows)
    for node, (acceptance_prob, count) in enumerate(zip(last.tolist(), counts, strict=True)):
        parent = node - 1
        for k in range(count):
            joined.append(PromptTreeRow(parent, k, -1, acceptance_prob * float(gains[k])))
            parent = len(joined) - 1
    order = sorted(range(len(joined)), key=lambda i: (-joined[i].value, i))
    renamed = {ROOT: ROOT} | {old: new for new, old in enumerate(order)}
    return tuple(
        PromptTreeRow(renamed[row.parent], row.depth, row.rank, row.value)
        for row in (joined[i] for i in order)
    )


def stationary_distribution(trees: Sequence[PromptTree]) -> NDArray[np.float64]:
    """Return the share of steps that each state takes in the long run."""
    moves = np.array([tree.moves for tree in trees])
    states = len(trees)
    system = np.vstack([moves.T - np.eye(states), np.ones(states)])
    shares: NDArray[np.float64] = np.linalg.lstsq(system, np.eye(states + 1)[states], rcond=None)[0]
    return shares


def tokens_per_step(trees: Sequence[PromptTree]) -> float:
    """Return the tokens of a step in the long run, the one drawn at its end included."""
    return 1.0 + float(stationary_distribution(trees) @ [tree.accepted for tree in trees])
