"""Typical acceptance: a draft token is accepted if its probability is high for the entropy.

A token x is accepted where p(x) > min(epsilon, delta * exp(-H(p))). p is the request's distribution
(with bans, penalties, constraint, temperature and truncation), H its entropy in nats. Of several
draft tokens the most probable one is accepted. Greedy requests are verified exactly.

Lossy: texts are biased towards the drafts. It drafts nothing itself, so name a drafter beside it.
Source: Medusa (Cai et al. 2024, arXiv:2401.10774), section 3.3.1, and its defaults 0.09 and 0.3.
Differs: Medusa takes the longest accepted candidate; here the best child is taken, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.speculative.config import ACCEPTANCE_RULE
from plait.decoders.speculative.context import DrafterContext

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-38  # keeps 0 * log(0) at 0


class TypicalOptions(Options):
    """The two thresholds."""

    epsilon: float = Field(0.09, gt=0, le=1, description="Probability that is always accepted.")
    delta: float = Field(0.3, gt=0, le=1, description="Share of exp(-entropy) that is accepted.")


class TypicalAcceptance:
    """Accepts probable draft tokens."""

    name: ClassVar[str] = "typical"

    def __init__(self, options: TypicalOptions) -> None:
        self._options = options

    def select(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the most probable of the tokens, if it is typical."""
        probs = distribution[list(token_ids)].tolist()
        best = max(range(len(probs)), key=probs.__getitem__)
        entropy = -float((distribution * distribution.clamp(min=TINY).log()).sum())
        threshold = min(self._options.epsilon, self._options.delta * exp(-entropy))
        return token_ids[best] if probs[best] > threshold else None

    def accepts_unverified(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Return False: every token is verified."""
        return False


def make(options: TypicalOptions, *, context: DrafterContext) -> TypicalAcceptance:
    """Build the acceptance rule."""
    return TypicalAcceptance(options)


METHOD = Method(
    kind="drafter",
    name="typical",
    summary="Accepts draft tokens of others that are probable enough. Lossy.",
    source="Medusa, arXiv:2401.10774, 3.3.1",
    target="plait.decoders.speculative.lossy.typical:make",
    options=TypicalOptions,
    part=ACCEPTANCE_RULE,
    lossy=True,
)
