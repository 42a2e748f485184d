"""Forced: the tokens to which a constraint leaves no alternative.

The grammar's text is certain, its spelling in tokens is not: the canonical one is drafted, and the
request's law may prefer another that writes the same. The last token before a choice is less sure,
since a longer one may reach over the border; it is told apart, so that its chance is learnt apart.

Law: none of its own; verified as every draft. Without a constraint there is nothing to say. Most
rows have other legal spellings, so the target's law is asked at each; what sampling skips is the
noise of all tokens that the constraint forbids, which is nearly all of its cost.
Source: jump-forward decoding as in xgrammar and SGLang, fast-forward tokens as in llguidance; here
the tokens are drafts, so no text is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext

FORCED_PROB = 0.9  # before anything is known of how a model spells
BOUNDARY_PROB = 0.6


class ForcedDrafter:
    """Reads the drafts off the constraint; remembers nothing else."""

    name: ClassVar[str] = "forced"

    def start(self, request: DecodeRequest) -> Constraint | None:
        """Return the request's constraint, if it has one."""
        return request.constraint

    def propose(self, requests: Sequence[DraftRequest[Constraint]]) -> Sequence[Draft]:
        """Return what the constraints force."""
        drafts = []
        for request in requests:
            constraint = request.state
            sure, border = constraint.forced_tokens(), constraint.border_tokens()
            acceptance_probs = [FORCED_PROB] * len(sure) + [BOUNDARY_PROB] * len(border)
            drafts.append(Draft([*sure, *border], acceptance_probs))
        return drafts

    def commit(self, state: Constraint, text: Sequence[int], result: VerificationResult) -> None:
        """Learn nothing."""

    def finish(self, state: Constraint, text: Sequence[int]) -> None:
        """Hold nothing."""


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
