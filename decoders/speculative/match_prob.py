"""How sure one may be of a token that has followed the same tokens before."""

from __future__ import annotations


def match_prob(matched: int, votes: int, share: float) -> float:
    """Return how probable a token is: the more has matched, and the more often, the more so.

    A rule of thumb to begin with; what it is worth is learnt (economy.py).

    Args:
        matched: tokens in front of it that are the same.
        votes: places at which it followed them, >= 1.
        share: of all places at which something did.
    """
    weight = matched + votes - 1
    return share * weight / (weight + 1)
