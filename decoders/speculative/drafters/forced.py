"""Forced: the tokens to which a constraint leaves no alternative.

The bytes that a grammar forces are certain, their spelling in tokens is not: the canonical one is
drafted, and the request may sample another that spells the same bytes. The last token before a
choice is less certain, because a longer token may cross the boundary; it has a stated probability
of its own, so its acceptance is learnt separately.

Law: none of its own; every draft is verified. Without a constraint it does not take part. Most
positions have other legal spellings, so the target samples at each; what is saved there is the
noise of all the illegal tokens, which is most of the cost of sampling.
Source: jump-forward decoding as in xgrammar and SGLang, fast-forward tokens as in llguidance; here
the tokens are drafts, so no text is tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext

FORCED_PROB = 0.9  # before anything is known of how a model spells
BOUNDARY_PROB = 0.6


class ForcedDrafter(Drafter[bool]):
    """Drafts what the constraint forces; keeps no state."""

    name: ClassVar[str] = "forced"

    def start(self, request: DecodeRequest) -> bool | None:
        """Return True for a request with a constraint, None for others."""
        return None if request.constraint is None else True

    def propose(self, requests: Sequence[DraftRequest[bool]]) -> Sequence[Draft]:
        """Return the forced tokens of each sequence."""
        drafts = []
        for request in requests:
            constraint = request.constraint
            assert constraint is not None, "only constrained sequences take part"
            forced, boundary = constraint.forced_tokens(), constraint.boundary_tokens()
            probs = [FORCED_PROB] * len(forced) + [BOUNDARY_PROB] * len(boundary)
            drafts.append(Draft([*forced, *boundary], probs))
        return drafts

    def observe(self, state: bool, text: Sequence[int], result: VerificationResult) -> None:
        """Do nothing: there is no state."""

    def finish(self, state: bool, text: Sequence[int]) -> None:
        """Do nothing: there is nothing to release."""


def make(options: DraftOptions, *, context: DrafterContext) -> ForcedDrafter:
    """Build the drafter."""
    return ForcedDrafter()


METHOD = Method(
    kind="drafter",
    name="forced",
    summary="Tokens to which a constraint leaves no alternative.",
    source="xgrammar's jump-forward decoding, llguidance's fast-forward tokens",
    target="plait.decoders.speculative.drafters.forced:make",
    options=DraftOptions,
)
