"""Draft model: a second, faster model of the same vocabulary writes ahead.

It keeps a cache of its own (`--draft-kv-cache-bytes`; a sequence that finds no room in it gets no
drafts), reads text in chunks of read_rows a step, and drafts all asking sequences together, one
pass a position. Drafts are drawn with the request's own law and noise (chains.py in second_model).

Law: none of its own; verified as every draft. Cost: max_draft passes of the draft model a step.
Source: Leviathan, Kalman and Matias, arXiv:2211.17192; Chen et al., arXiv:2302.01318. Departs from
them in the verifier, sample and match under shared noise instead of the ratio test: the text is the
one without drafts, which a ratio test can't promise. With `--draft-model self:LAYERS` the second
model is the first without some layers, as in Draft & Verify (Zhang et al., arXiv:2309.08168).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, DraftOptions

if TYPE_CHECKING:
    from plait.decoders.speculative.draft_model.runner import DraftModelRunner, DraftSequence


class DraftModelReadOptions(DraftOptions):
    """How a second model reads."""

    read_rows: int = Field(
        256, ge=16, le=4096, description="Tokens of texts that it reads in one step."
    )


class DraftModelOptions(DraftModelReadOptions):
    """How a second model writes ahead."""

    max_draft: int = Field(5, ge=1, le=MAX_DRAFT, description="Tokens behind the text, at most.")
    min_survival: float = Field(
        0.1, ge=0, le=1, description="A chain that is less likely to come true is not continued."
    )


class DraftModelDrafter:
    """Asks the second model for chains."""

    name: ClassVar[str] = "draft-model"

    def __init__(self, options: DraftModelOptions, runner: DraftModelRunner) -> None:
        self._max_draft = options.max_draft
        self._chains = runner

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Read nothing yet: the prompt is read when the first draft is asked for."""
        return self._chains.start(request)

    def propose(self, requests: Sequence[DraftRequest[DraftSequence]]) -> Sequence[Draft]:
        """Return what the second model writes behind what others have drafted."""
        drafts = [Draft()] * len(requests)
        open_asks = [
            (
                i,
                self._chains.job(
                    request.state,
                    request.text,
                    request.draft_prefix,
                    max_tokens,
                    request.constraint,
                ),
            )
            for i, request in enumerate(requests)
            if (max_tokens := min(request.max_tokens, self._max_draft - len(request.draft_prefix)))
            > 0
        ]
        drawn = self._chains.draw([job for _, job in open_asks])
        for (i, _), draft in zip(open_asks, drawn, strict=True):
            drafts[i] = draft
        return drafts

    def commit(self, state: DraftSequence, text: Sequence[int], result: VerificationResult) -> None:
        """Take note of the text."""
        self._chains.commit(state, result.emitted)

    def finish(self, state: DraftSequence, text: Sequence[int]) -> None:
        """Give back the cache."""
        self._chains.finish(state)


METHOD = Method(
    kind="drafter",
    name="draft-model",
    summary="A second, faster model writes ahead, with the request's own noise.",
    source="Leviathan et al., arXiv:2211.17192; Daliri et al., arXiv:2408.07978",
    target="plait.decoders.speculative.draft_model.make:draft_model",
    options=DraftModelOptions,
    needs=frozenset({"draft_model"}),
)
