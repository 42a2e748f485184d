"""Trigrams: which tokens follow each pair of tokens, weighted by corpora and by recent use.

The weight of a successor is its relative frequency in the imported texts plus what adaptation has
added: one step each time that the trigram is in the window of the latest tokens, up to a cap.
Weights are scores and may exceed 1.

Law: weight == min(count / sum of counts + steps, cap). Bounded: at most max_pairs pairs, the least
recently used are evicted; MAX_SUCCESSORS successors a pair by weight, and MAX_CANDIDATES by count
in the corpora. Cost: O(1) a trigram.
Source: ADED, arXiv:2407.12021, and the repository Adaptix. Differs from them in the bounds, and in
that frequencies are updated with every imported text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MAX_SUCCESSORS = 12  # of a pair
MAX_CANDIDATES = 4 * MAX_SUCCESSORS  # of a pair, counted in the corpora
Successors = Sequence[tuple[int, float]]  # (token, weight), heaviest first


@dataclass(slots=True)
class PairSuccessors:
    """The successors of one pair of tokens."""

    counts: dict[int, int] = field(default_factory=dict)  # in the corpora
    steps: dict[int, float] = field(default_factory=dict)  # by adaptation
    ranked: Successors | None = None  # None: must be computed

    def count(self, token: int) -> None:
        """Count one occurrence in a corpus; of too many candidates the rarest is dropped."""
        self.counts[token] = self.counts.get(token, 0) + 1
        if len(self.counts) > MAX_CANDIDATES:
            del self.counts[min(self.counts, key=self.counts.__getitem__)]
        self.ranked = None

    def add_weight(self, token: int, step: float, cap: float) -> None:
        """Add to the weight of one token; of too many tokens the lightest is dropped."""
        share = self.counts[token] / sum(self.counts.values()) if token in self.counts else 0.0
        added = min(self.steps.get(token, 0.0) + step, max(cap - share, 0.0))
        if token not in self.steps and len(self.steps) == MAX_SUCCESSORS:
            del self.steps[min(self.steps, key=self.steps.__getitem__)]
        self.steps[token] = added
        self.ranked = None

    def successors(self) -> Successors:
        """Return the heaviest successors; of equals, those of the corpora and older ones first."""
        if self.ranked is None:
            total = sum(self.counts.values())
            weights = {token: count / total for token, count in self.counts.items()}
            for token, step in self.steps.items():
                weights[token] = weights.get(token, 0.0) + step
            self.ranked = sorted(weights.items(), key=lambda each: -each[1])[:MAX_SUCCESSORS]
        return self.ranked


class TriGrams:
    """The trigrams of a namespace, or of one sequence that shares nothing."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[int, int], PairSuccessors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Count an imported text; outputs are left out: they were adapted to while they ran."""
        if is_imported:
            for pair, token in tri_grams(token_ids):
                self._touch(pair).count(token)

    def adapt(self, window: Sequence[int], step: float, cap: float) -> None:
        """Add a step for every trigram of the latest tokens."""
        for pair, token in tri_grams(window):
            self._touch(pair).add_weight(token, step, cap)

    def adapt_to_text(self, text: Sequence[int], window: int, step: float, cap: float) -> None:
        """Adapt to a text as if it had been generated token by token, without the last step."""
        last = len(text) - 1
        for i, (pair, token) in enumerate(tri_grams(text), 2):
            times = min(window - 2, last - i)
            if times > 0:
                self._touch(pair).add_weight(token, step * times, cap)

    def successors(self, pair: tuple[int, int]) -> Successors:
        """Return the tokens that may follow a pair, heaviest first."""
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
