"""How often a selector's text is valid under a model that makes no mistake of its own.

The model knows the exact law of every hole given what is settled; what goes wrong, goes wrong
because several holes are drawn at once from their own laws. Probabilities are exact: all draws are
enumerated. Source: ParallelBench, arXiv:2510.04767, section 3 (closed forms), and the same argument
for the other rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import permutations, product
from math import e, log, perm, prod
from typing import Any, Literal

import numpy as np
import pytest

from plait.decoders.diffusion.protocols import StepView, top_k
from tests.fixtures.step_views import part, view_of

Text = tuple[int, ...]
Law = dict[int, Fraction]
Draws = Literal["greedy", "sampled"]


def shuffled(n: int) -> list[Text]:
    """All orders of n items."""
    return list(permutations(range(n)))


def replaced(n: int) -> list[Text]:
    """One of n slots takes the new item, 1; the others keep theirs, 0."""
    return [tuple(int(i == j) for i in range(n)) for j in range(n)]


class Ideal:
    """Decodes a uniform law over texts by a selector, over all draws at once."""

    def __init__(self, texts: Sequence[Text], selector: Any, draws: Draws) -> None:
        self.texts, self.selector, self.draws = texts, selector, draws
        self.known: dict[frozenset[tuple[int, int]], Fraction] = {}

    def validity(self, settled: Mapping[int, int] | None = None) -> Fraction:
        """Return the probability that the text ends as one of the texts."""
        state = frozenset((settled or {}).items())
        if state not in self.known:
            self.known[state] = self._validity(dict(state))
        return self.known[state]

    def _validity(self, settled: dict[int, int]) -> Fraction:
        left = [t for t in self.texts if all(t[i] == token for i, token in settled.items())]
        holes = [i for i in range(len(self.texts[0])) if i not in settled]
        if not left or not holes:
            return Fraction(bool(left))
        laws = [_law([text[i] for text in left]) for i in holes]
        total = Fraction(0)
        for drawn, chance in self._outcomes(laws):
            view = _view(holes, laws, drawn, len(self.texts[0]))
            settle = self.selector.select(view, None).unmask
            settle = settle if settle.any() else top_k(self.selector.score(view), 1)
            new = {holes[i]: drawn[i] for i in np.flatnonzero(settle)}
            total += chance * self.validity(settled | new)
        return total

    def _outcomes(self, laws: Sequence[Law]) -> Iterator[tuple[Text, Fraction]]:
        """Yield what can be drawn at the holes, with its probability; ties are drawn as well."""
        if self.draws == "greedy":
            laws = [_law([t for t in law if law[t] == max(law.values())]) for law in laws]
        for drawn in product(*laws):
            yield (
                drawn,
                prod(
                    (law[token] for law, token in zip(laws, drawn, strict=True)), start=Fraction(1)
                ),
            )


def _law(tokens: Sequence[int]) -> Law:
    return {token: Fraction(tokens.count(token), len(tokens)) for token in sorted(set(tokens))}


def _view(holes: Sequence[int], laws: Sequence[Law], drawn: Text, size: int) -> StepView:
    p = [float(law[token]) for law, token in zip(laws, drawn, strict=True)]
    ranked = [[*sorted((float(q) for q in law.values()), reverse=True), 0.0] for law in laws]
    entropy = [-sum(q * log(q) for q in map(float, law.values())) for law in laws]
    p2 = [q[1] for q in ranked]
    return view_of(p, positions=holes, tokens=drawn, start=0, stop=size, p2=p2, entropy=entropy)


def validity(
    texts: Sequence[Text], name: str, options: dict[str, Any], draws: Draws = "sampled"
) -> Fraction:
    return Ideal(texts, part(name, options), draws).validity()


def drawn_apart(n: int, sizes: Sequence[int]) -> Fraction:
    """Return the chance that items drawn `sizes` at a time, each from those left, all differ."""
    total, left = Fraction(1), n
    for k in sizes:
        total *= Fraction(perm(left, k), left**k)
        left -= k
    return total


@pytest.mark.parametrize("name", ["static", "random"])
@pytest.mark.parametrize(
    ("n", "k", "want"),
    [
        (4, 1, Fraction(1)),
        (4, 2, Fraction(3 * 1, 4 * 2)),  # (n - 1)!! / n!!
        (4, 4, Fraction(24, 256)),  # n! / n^n
        (3, 3, Fraction(6, 27)),
        (3, 2, Fraction(2, 3)),
    ],
)
def test_shuffle_k_at_a_time(name: str, n: int, k: int, want: Fraction) -> None:
    sizes = [min(k, n - done) for done in range(0, n, k)]
    assert validity(shuffled(n), name, {"tokens_per_step": k}) == want == drawn_apart(n, sizes)


@pytest.mark.parametrize(
    ("bar", "sizes"),
    [
        (0.9, [1, 1, 1, 1]),
        (0.51, [1, 1, 1, 1]),  # exact above 1/2
        (0.5, [1, 1, 2]),
        (0.34, [1, 1, 2]),
        (0.3, [1, 3]),
        (0.25, [4]),
    ],
)
@pytest.mark.parametrize("name", ["threshold", "dynamic"])
def test_shuffle_with_a_threshold(name: str, bar: float, sizes: list[int]) -> None:
    assert validity(shuffled(4), name, {"threshold": bar}) == drawn_apart(4, sizes)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        # with m left, j are settled for (j + 1) (1 - 1/m) < factor
        ("factor", {"factor": 1.0}, [1, 1, 1, 1]),
        ("factor", {"factor": 1.5}, [1, 1, 1, 1]),  # exact up to 3/2
        ("factor", {"factor": 1.6}, [1, 1, 2]),
        ("factor", {"factor": 2.1}, [1, 2, 1]),
        # every entropy is log m
        ("entropy-bound", {"bound": 0.69}, [1, 1, 1, 1]),  # exact below log 2
        ("entropy-bound", {"bound": 0.7}, [1, 1, 2]),
        ("entropy-bound", {"bound": 1.1}, [1, 2, 1]),
        ("d-parallel", {"threshold": 0.69}, [1, 1, 1, 1]),  # exact below log 2
        ("d-parallel", {"threshold": 0.7}, [1, 1, 2]),
        # nothing is an anchor before it is alone
        ("local-leap", {"relaxed": 0.0, "radius": 9}, [1, 1, 1, 1]),
        ("local-leap", {"anchor": 0.5, "relaxed": 0.0}, [1, 1, 2]),
        # the holes left of the leftmost are one run
        ("hierarchy", {"low": 0.0}, [1, 1, 1, 1]),
    ],
)
def test_shuffle_with_other_rules(name: str, options: dict[str, Any], sizes: list[int]) -> None:
    assert validity(shuffled(4), name, options) == drawn_apart(4, sizes)


def test_hierarchy_is_as_blind_across_a_gap_as_any_rule() -> None:
    """Two holes with a settled one between them still depend on each other."""
    texts = shuffled(3)
    assert Ideal(texts, part("hierarchy"), "sampled").validity({1: 0}) == Fraction(1, 2)
    assert Ideal(texts, part("threshold"), "sampled").validity({1: 0}) == 1


@pytest.mark.parametrize(
    ("n", "k", "want"),
    [(4, 1, 1), (6, 1, 1), (4, 2, Fraction(1, 2)), (6, 2, Fraction(1, 2)), (6, 3, 0), (4, 4, 0)],
)
def test_replace_random_greedily_k_at_a_time(n: int, k: int, want: Fraction) -> None:
    assert validity(replaced(n), "static", {"tokens_per_step": k}, "greedy") == want


@pytest.mark.parametrize("n", [3, 5, 8])
def test_replace_random_drawn_in_one_step(n: int) -> None:
    want = (1 - Fraction(1, n)) ** (n - 1)
    assert validity(replaced(n), "threshold", {"threshold": 0.0}) == want
    assert want > 1 / e  # its limit


@pytest.mark.parametrize("n", [3, 4, 5])
def test_replace_random_needs_a_bar_that_no_marginal_reaches(n: int) -> None:
    high = (n - 1) / n
    for bar, want in ((high - 0.01, 0), (high, 0), (high + 0.01, 1)):
        assert validity(replaced(n), "threshold", {"threshold": bar}, "greedy") == want


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": 0.0}),
        ("static", {"tokens_per_step": 5}),
        ("factor", {"factor": 1.0}),
        ("entropy-bound", {"bound": 0.0}),
        ("d-parallel", {}),
    ],
)
def test_independent_slots_lose_nothing(name: str, options: dict[str, Any]) -> None:
    """Copying has no dependence between slots: one step is exact for every rule."""
    selector = part(name, options)
    one = Ideal([(4, 3, 2, 1, 0)], selector, "sampled")
    assert one.validity() == 1
    view = _view(range(5), [{t: Fraction(1)} for t in (4, 3, 2, 1, 0)], (4, 3, 2, 1, 0), 5)
    assert selector.select(view, None).unmask.all()
