"""Draws under a check, each with an unbiased estimate of the mass that passes. No torch.

A row's law p is visited in an order of draws without replacement (order.py) until a token passes;
that token x is an exact draw of p given the check. Each estimator also returns a weight w.

Law, for each: E[w * 1[x = v]] == p(v) * 1[v passes] for every token v.
Numbers may be floats or fractions.
Source: Lipkin et al., arXiv:2504.05410, section 3 and appendix; what differs is said below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

PEAKED = 2 / 3  # mass of one token from which the reference takes the geometric estimator


class CheckedRow(Protocol):
    """The law of one row, and its randomness."""

    @property
    def one(self) -> Any:
        """The number 1, of the law's kind of numbers."""

    def order(self) -> Iterator[int]:
        """Yield all tokens in the order of the row's own draws without replacement."""

    def fresh_order(self, loop: int, excluded: Sequence[int]) -> Iterator[int]:
        """Yield the tokens that are not excluded, in an order that is independent of others."""

    def prob(self, token: int) -> Any:
        """Return the token's probability; they add up to 1."""

    def num_draws(self, rejected: Any) -> int:
        """Return how many draws it takes until one is outside of a rejected mass: geometric."""


@dataclass(slots=True)
class Weighed:
    """A draw under a check."""

    token: int | None  # None: no token passes
    weight: Any  # 0 where none does
    taken_back: list[int] = field(default_factory=list)  # drawn before the token


def recursive(row: CheckedRow, passes: Callable[[int], bool]) -> Weighed:
    """Check one more token behind the draw; the reference's default (there: recursive AWRS)."""
    return des_raj(row, passes, 1)


def des_raj(row: CheckedRow, passes: Callable[[int], bool], extra_checks: int) -> Weighed:
    """Check `extra_checks` more tokens, as far as there are any: each makes the weight steadier.

    With R rejected before x, and y_1, y_2, ... behind it in the order, the estimate at step j is
    t_j = sum of p(y_i) over the y_i before y_j that pass, plus what is left (1 - R - p(x) - p(y_1)
    - ... - p(y_{j-1})) if y_j passes; w is p(x) plus the mean of these.
    Source: Des Raj 1956, "Some estimators in sampling with varying probabilities without
    replacement"; one extra check is the recursive estimator, more are not in the paper.
    """
    order = row.order()
    found = _first(row, order, passes)
    if found.token is None:
        return found
    left, zero = found.weight - row.prob(found.token), row.one - row.one
    passed, estimates = zero, list[Any]()
    for token in _take(order, extra_checks):
        prob, is_legal = row.prob(token), passes(token)
        estimates.append(passed + (max(left, zero) if is_legal else zero))
        passed += prob if is_legal else zero
        left -= prob
    mean = sum(estimates, zero) / max(len(estimates), 1)
    found.weight = row.prob(found.token) + mean
    return found


def two_loop(row: CheckedRow, passes: Callable[[int], bool]) -> Weighed:
    """Draw a second time from what is not rejected, the draw itself among it.

    w = (1 - mass rejected at first) / (number of tokens rejected in both loops + 1): unbiased
    together with the draw, not given it. The replication code of the paper.
    """
    found = _first(row, row.order(), passes)
    if found.token is None:
        return found
    num_rejected = len(found.taken_back)
    for token in row.fresh_order(1, found.taken_back):
        if token == found.token or passes(token):
            break
        num_rejected += 1
    found.weight = found.weight / (num_rejected + 1)
    return found


def geometric(row: CheckedRow, passes: Callable[[int], bool], max_accepts: int) -> Weighed:
    """Count the rejections of a run with replacement until `max_accepts` tokens have passed.

    w = (max_accepts - 1) / (draws - 1), the unbiased estimate of a negative binomial. Draws of
    tokens that are known to be rejected are not made, but their number is drawn.
    """
    rejected, passed, first = list[int](), set[int](), Weighed(None, 0)
    mass: Any = 0
    num_draws = 0
    for loop in range(max_accepts):
        order = row.fresh_order(loop, rejected) if loop else row.order()
        for token in order:
            num_draws += row.num_draws(mass) if mass > 0 else 1
            if token in passed or passes(token):
                passed.add(token)
                break
            rejected.append(token)
            mass += row.prob(token)
        else:
            return Weighed(None, 0, rejected)
        if loop == 0:
            first = Weighed(token, 0, list(rejected))
    first.weight = row.one * (max_accepts - 1) / (num_draws - 1)
    return first


def _first(row: CheckedRow, order: Iterator[int], passes: Callable[[int], bool]) -> Weighed:
    """Return the first token that passes, with the mass that was not rejected before it."""
    taken_back, left = list[int](), row.one
    for token in order:
        if passes(token):
            return Weighed(token, max(left, row.prob(token)), taken_back)
        taken_back.append(token)
        left -= row.prob(token)
    return Weighed(None, 0, taken_back)


def _take(order: Iterator[int], count: int) -> Iterator[int]:
    for _ in range(count):
        token = next(order, None)
        if token is None:
            return
        yield token
