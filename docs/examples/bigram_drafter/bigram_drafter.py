"""A drafter in a package of its own: drafts what followed the last token where it stood before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext

State = tuple[()]


class BigramDrafter(Drafter[State]):
    """Remembers nothing of a sequence: it looks at the text each time. Cost: O(text)."""

    name: ClassVar[str] = "bigram"

    def __init__(self, options: DraftOptions, context: DrafterContext) -> None:
        self._max_draft = options.max_draft

    def start(self, request: DecodeRequest) -> State:
        """Return the state; None would say that nothing is to be drafted for this request."""
        return ()

    def propose(self, requests: Sequence[DraftRequest[State]]) -> Sequence[Draft]:
        """Return a draft for each sequence, an empty one where the last token is new."""
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest[State]) -> Draft:
        text = [*request.text, *request.draft_prefix]
        for at in range(len(text) - 2, -1, -1):
            if text[at] == text[-1]:
                token_ids = text[at + 1 : at + 1 + min(request.max_tokens, self._max_draft)]
                return Draft(token_ids, [0.5] * len(token_ids))
        return Draft()

    def observe(self, state: State, text: Sequence[int], result: VerificationResult) -> None:
        """Learn nothing."""

    def finish(self, state: State, text: Sequence[int]) -> None:
        """Release nothing."""


BIGRAM = Method(
    kind="drafter",
    name="bigram",
    summary="What followed the last token where it last stood in the text.",
    source="",
    target="bigram_drafter:BigramDrafter",
    options=DraftOptions,
)
