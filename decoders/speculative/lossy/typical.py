"""Typical acceptance: a draft token stands if it is probable enough for so open a choice.

A token x stands where p(x) > min(epsilon, delta * exp(-H(p))), p being the request's own law (bans,
penalties, constraint, temperature and truncation included) and H its entropy in nats. Of several
the most probable one stands. Greedy requests have no open choices, so they are verified exactly.

Lossy: texts lean towards what the drafters draft. It judges the drafts of others: name some.
Source: Medusa (Cai et al. 2024, arXiv:2401.10774), section 3.3.1, and its defaults 0.09 and 0.3.
Departs: Medusa takes the longest of its candidates; here the walk takes the best child, row by row.
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

TINY = 1e-38  # whose logarithm times 0 is 0


class TypicalOptions(Options):
    """The two bounds."""

    epsilon: float = Field(0.09, gt=0, le=1, description="Probability that is always enough.")
    delta: float = Field(0.3, gt=0, le=1, description="Share of exp(-entropy) that is enough.")


class TypicalAcceptance:
    """Lets probable drafts stand."""

    name: ClassVar[str] = "typical"

    def __init__(self, options: TypicalOptions) -> None:
        self._options = options

    def pick(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the most probable of the tokens, if it is typical."""
        acceptance_probs = distribution[list(token_ids)].tolist()
        best = max(range(len(acceptance_probs)), key=acceptance_probs.__getitem__)
        entropy = -float((distribution * distribution.clamp(min=TINY).log()).sum())
        enough = min(self._options.epsilon, self._options.delta * exp(-entropy))
        return token_ids[best] if acceptance_probs[best] > enough else None

    def trusts(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Trust nothing that was not verified."""
        return False


def make(options: TypicalOptions, *, context: DrafterContext) -> TypicalAcceptance:
    """Build the judge."""
    return TypicalAcceptance(options)


METHOD = Method(
    kind="drafter",
    name="typical",
    summary="Lets drafts of others stand that are probable enough. Lossy.",
    source="Medusa, arXiv:2401.10774, 3.3.1",
    target="plait.decoders.speculative.lossy.typical:make",
    options=TypicalOptions,
    part=ACCEPTANCE_RULE,
    lossy=True,
)
