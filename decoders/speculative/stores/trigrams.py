"""Tri-grams: which tokens follow each pair of tokens, weighted by corpora and by recent use.

A successor's weight is its share in the imported texts, and what adaptation has added: a step each
time that the tri-gram stands in the window of the latest tokens, as long as the weight stays below
a cap. Weights may exceed 1: they are scores.

Law: weight == min(count / sum of counts + steps, cap). Bounded: max_pairs pairs, those that nobody
has touched for longest go first; the MOST heaviest successors of a pair, and the CANDIDATES most
frequent ones of its corpora. Cost: O(1) a tri-gram.
Source: ADED, arXiv:2407.12021, and the repository Adaptix. Departs from them where it is bounded,
and where shares are taken anew with every text that is imported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MAX_SUCCESSORS = 12  # successors of a pair
MAX_CANDIDATES = 4 * MAX_SUCCESSORS  # of them, while the corpora are counted
Successors = Sequence[tuple[int, float]]  # (token, weight), heaviest first


@dataclass(slots=True)
class PairSuccessors:
    """What follows two tokens."""

    counts: dict[int, int] = field(default_factory=dict)  # in the corpora
    steps: dict[int, float] = field(default_factory=dict)  # by adaptation
    ranked: Successors | None = None  # None: to be ranked anew

    def count(self, token: int) -> None:
        """Take note of one place in a corpus; of too many candidates the rarest goes."""
        self.counts[token] = self.counts.get(token, 0) + 1
        if len(self.counts) > MAX_CANDIDATES:
            del self.counts[min(self.counts, key=self.counts.__getitem__)]
        self.ranked = None

    def bump(self, token: int, step: float, cap: float) -> None:
        """Add to the weight of one token; of too many tokens the lightest goes."""
        share = self.counts[token] / sum(self.counts.values()) if token in self.counts else 0.0
        added = min(self.steps.get(token, 0.0) + step, max(cap - share, 0.0))
        if token not in self.steps and len(self.steps) == MAX_SUCCESSORS:
            del self.steps[min(self.steps, key=self.steps.__getitem__)]
        self.steps[token] = added
        self.ranked = None

    def successors(self) -> Successors:
        """Return the heaviest successors; of equals, those of the corpora and the older first."""
        if self.ranked is None:
            total = sum(self.counts.values())
            weights = {token: count / total for token, count in self.counts.items()}
            for token, step in self.steps.items():
                weights[token] = weights.get(token, 0.0) + step
            self.ranked = sorted(weights.items(), key=lambda each: -each[1])[:MAX_SUCCESSORS]
        return self.ranked


class TriGrams:
    """The tri-grams of a namespace, or of one sequence that keeps to itself."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[int, int], PairSuccessors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Count an imported text; what was written here has been adapted to while it was."""
        if is_imported:
            for pair, token in tri_grams(token_ids):
                self._touch(pair).count(token)

    def adapt(self, window: Sequence[int], step: float, cap: float) -> None:
        """Add a step for every tri-gram of the latest tokens."""
        for pair, token in tri_grams(window):
            self._touch(pair).bump(token, step, cap)

    def catch_up(self, text: Sequence[int], window: int, step: float, cap: float) -> None:
        """Adapt to a text as if it had been written here, but for the step at its end."""
        last = len(text) - 1
        for i, (pair, token) in enumerate(tri_grams(text), 2):
            times = min(window - 2, last - i)
            if times > 0:
                self._touch(pair).bump(token, step * times, cap)

    def successors(self, pair: tuple[int, int]) -> Successors:
        """Return the tokens that may follow two others, the heaviest first."""
        found = self._pairs.get(pair)
        return () if found is None else found.successors()

    def _touch(self, key: tuple[int, int]) -> PairSuccessors:
        found = self._pairs.get(key)
        if found is None:
            found = self._pairs[key] = PairSuccessors()
            if len(self._pairs) > self._max_pairs:
                self._pairs.popitem(last=False)
        else:
            self._pairs.move_to_end(key)
        return found


def tri_grams(token_ids: Sequence[int]) -> Iterator[tuple[tuple[int, int], int]]:
    """Return every ((token, token), token) of a text."""
    return zip(pairwise(token_ids), token_ids[2:], strict=False)
