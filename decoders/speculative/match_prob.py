"""The acceptance probability of a token that has followed the same context before."""

from __future__ import annotations


def match_prob(matched: int, votes: int, share: float) -> float:
    """Return a first estimate of the probability that a token is accepted.

    It rises with the length of the match and with the number of occurrences. The estimate is a rule
    of thumb; draft_budget.py learns how often it is right.

    Args:
        matched: tokens of context that match.
        votes: occurrences of the context that this token followed, >= 1.
        share: of all occurrences of the context that have a next token.
    """
    weight = matched + votes - 1
    return share * weight / (weight + 1)
