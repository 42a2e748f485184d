"""The law of a block's tokens given that they are read by a finite automaton. Numpy only.

A step's distribution has independent positions: p_1(x_1) ... p_d(x_d). The posterior is that
distribution where an automaton accepts x up to its first end token, and 0 elsewhere. One backward
pass over positions and states gives everything: its best text (DINGO), exact draws and exact
marginals. All weights are logarithms. Cost of a pass: O(positions * transitions).

Laws (against enumeration): `best` has the highest product of all accepted texts; drawing with
Gumbel noise at each position follows the posterior; marginals are those of the posterior.

Source: best text: DINGO, Suresh et al. 2025, arXiv:2505.23061, section 4; draws and marginals: Dang
and Ermon 2026, arXiv:2607.07026 (forward-filtering, backward-sampling). Differences: transitions
between the same two states are merged before a pass; the text ends in a state of its own, which end
tokens lead to and any token keeps; a state counts as live while its shortest known completion fits
into the tokens that are left, not merely while it can be completed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from plait.decoders.contract.constraint import TokenDfa
from plait.decoders.diffusion.protocols import Floats, Ints

BEHIND_END = -1  # the token of a position behind the text's end: any


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """A TokenDfa with the end of the text as its last state, and its transitions grouped."""

    source: Ints  # [n], rising
    token: Ints  # [n]
    target: Ints  # [n]
    of_source: Ints  # [states + 1] into transitions
    groups: Ints  # [pairs] first transition of each (source, target)
    closing: Ints  # [states]

    @property
    def end(self) -> int:
        """The state behind the end."""
        return len(self.closing) - 1

    def walk(self, tokens: Sequence[int]) -> int | None:
        """Return the state behind some tokens of an answer; None: they are illegal."""
        state = 0
        for token in tokens:
            own = slice(*self.of_source[state : state + 2])
            found = np.flatnonzero(self.token[own] == token)
            if not len(found):
                return None
            state = int(self.target[own][found[0]])
        return state


@lru_cache(maxsize=32)
def transitions_of(dfa: TokenDfa, stops: frozenset[int]) -> Transitions:
    """Return an automaton's transitions, where tokens that stop a text lead to its end."""
    end = len(dfa.accepting)
    target = np.where(np.isin(dfa.token, [*stops]), end, dfa.target)
    ends = np.array(sorted(stops & dfa.eos_token_ids), np.int64)
    complete = np.flatnonzero(dfa.accepting)
    source = np.concatenate([dfa.source, np.repeat(complete, len(ends))])
    token = np.concatenate([dfa.token, np.tile(ends, len(complete))])
    target = np.concatenate([target, np.full(len(complete) * len(ends), end, np.int64)])
    order = np.lexsort((token, target, source))
    source, token, target = source[order], token[order], target[order]
    is_first = np.ones(len(source), np.bool_)
    is_first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    return Transitions(
        source,
        token,
        target,
        np.searchsorted(source, np.arange(end + 2)),
        np.flatnonzero(is_first),
        np.append(dfa.closing, 0),
    )


@dataclass(frozen=True, eq=False)
class Posterior:
    """Positions in a row behind a state. The weights of a position are its row of scores."""

    transitions: Transitions
    start: int
    rows: Sequence[int]  # [d] of a masked position: its row of scores; of others: -1 - token
    left: int  # tokens that the answer may have behind the start
    scores: Floats  # [masked, vocab]

    @property
    def exists(self) -> bool:
        """Whether some text is accepted."""
        return self.log_mass > -np.inf

    @property
    def log_mass(self) -> float:
        """The log of the mass of all accepted texts; the rows of scores need no sum."""
        return float(self.backward[0][self.start])

    @cached_property
    def backward(self) -> list[Floats]:
        """For each position and the end, [states] the log mass of the texts from there on."""
        return self._backward(best=False)

    def draw(self, noise: Floats) -> list[int]:
        """Return the tokens of one exact draw, BEHIND_END behind the text's end.

        noise: [masked, vocab] Gumbel noise.
        """
        return self._choose(self.backward, noise)

    def best(self) -> list[int]:
        """Return the tokens of the best text, BEHIND_END behind its end; ties to lower tokens."""
        return self._choose(self._backward(best=True), None)

    def marginals(self) -> Floats:
        """Return [masked, vocab] the probability of each token; 0 in all where the text has ended.

        What is missing from 1 in a row is the probability that the text has ended before it.
        """
        moves, found = self.transitions, np.zeros_like(self.scores)
        states = np.full(len(moves.closing), -np.inf)
        states[self.start] = 0.0
        total = self.log_mass
        for i, row in enumerate(self.rows):
            weights = self._weights(row)
            ahead = states[moves.source] + weights
            mass = np.exp(ahead + self.backward[i + 1][moves.target] - total)
            if row >= 0:
                found[row] = np.bincount(moves.token, mass, self.scores.shape[1])
            behind = np.full_like(states, -np.inf)
            merged = _merged(ahead, moves.groups, best=False)
            np.logaddexp.at(behind, moves.target[moves.groups], merged)
            kept = states[moves.end] + self._behind_end(row, best=False)
            behind[moves.end] = np.logaddexp(behind[moves.end], kept)
            states = behind
        return found

    def _behind_end(self, row: int, *, best: bool) -> float:
        """Return the log weight of a position behind the end, which nobody reads: of any token."""
        if row < 0:
            return 0.0
        scores = self.scores[row]
        return float(scores.max() if best else np.logaddexp.reduce(scores))

    def _weights(self, row: int) -> Floats:
        """Return [n] the log weight of each transition at a position."""
        moves = self.transitions
        if row >= 0:
            weights: Floats = self.scores[row][moves.token]
            return weights
        return np.where(moves.token == -1 - row, 0.0, -np.inf)

    def _backward(self, *, best: bool) -> list[Floats]:
        moves = self.transitions
        merge = np.maximum if best else np.logaddexp
        layers = [self._live(len(self.rows))]
        for i in range(len(self.rows) - 1, -1, -1):
            row, behind = self.rows[i], layers[-1]
            pairs = _merged(self._weights(row) + behind[moves.target], moves.groups, best=best)
            layer = np.full_like(behind, -np.inf)
            merge.at(layer, moves.source[moves.groups], pairs)
            layer[moves.end] = behind[moves.end] + self._behind_end(row, best=best)
            layers.append(layer + self._live(i))
        return layers[::-1]

    def _live(self, position: int) -> Floats:
        """Return [states] 0 where the text can still be completed, -inf elsewhere."""
        return np.where(self.transitions.closing <= self.left - position, 0.0, -np.inf)

    def _choose(self, layers: Sequence[Floats], noise: Floats | None) -> list[int]:
        """Go through the positions; take each transition by what it and all behind it weigh."""
        moves, state, found = self.transitions, self.start, list[int]()
        for row, behind in zip(self.rows, layers[1:], strict=True):
            if state == moves.end:
                found.append(BEHIND_END)
                continue
            own = slice(*moves.of_source[state : state + 2])
            weights = self._weights(row)[own] + behind[moves.target[own]]
            if noise is not None and row >= 0:
                weights = weights + noise[row][moves.token[own]]
            best = _first_best(weights, moves.token[own])
            found.append(int(moves.token[own][best]))
            state = int(moves.target[own][best])
        return found


def _first_best(weights: Floats, tokens: Ints) -> int:
    ties = np.flatnonzero(weights == weights.max())
    return int(ties[np.argmin(tokens[ties])])


def _merged(weights: Floats, groups: Ints, *, best: bool) -> Floats:
    """Return the maximum, or the log of the sum, of each group of transitions."""
    highest: Floats = np.maximum.reduceat(weights, groups)
    if best:
        return highest
    sizes = np.diff(np.append(groups, len(weights)))
    base = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):  # the log of an impossible group is -inf
        sums = np.log(np.add.reduceat(np.exp(weights - np.repeat(base, sizes)), groups))
    made: Floats = base + sums
    return made
