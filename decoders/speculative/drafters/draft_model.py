"""Draft model: a smaller, faster model with the same vocabulary writes the draft.

It has a KV cache of its own (`--draft-kv-cache-bytes`); a sequence that finds no blocks there gets
no drafts. It reads texts in chunks of read_rows tokens a step, and drafts for all sequences
together, one pass per position. Drafts are sampled with the request's own parameters and noise
(draft_model/runner.py).

Law: none of its own; every draft is verified. Cost: max_draft passes of the draft model a step.
Source: Leviathan, Kalman and Matias, arXiv:2211.17192; Chen et al., arXiv:2302.01318. Differs from
them in the verifier: sample and match under shared noise instead of the ratio test, so the text is
the one without drafts, which a ratio test can't promise. With `--draft-model self:LAYERS` the draft
model is the target without some layers, as in Draft & Verify (Zhang et al., arXiv:2309.08168).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, DraftOptions

if TYPE_CHECKING:
    from plait.decoders.speculative.draft_model.runner import (
        DraftJob,
        DraftModelRunner,
        DraftSequence,
    )


class DraftModelReadOptions(DraftOptions):
    """How the draft model reads texts."""

    read_rows: int = Field(
        256, ge=16, le=4096, description="Most tokens of texts that it reads in one step."
    )


class DraftModelOptions(DraftModelReadOptions):
    """How far the draft model drafts."""

    max_draft: int = Field(5, ge=1, le=MAX_DRAFT, description="Most tokens of one draft.")
    min_survival: float = Field(
        0.1, ge=0, le=1, description="A draft ends where its path probability falls below."
    )


class DraftModelDrafter(Drafter["DraftSequence"]):
    """Drafts chains with the draft model."""

    name: ClassVar[str] = "draft-model"

    def __init__(self, options: DraftModelOptions, runner: DraftModelRunner) -> None:
        self._max_draft = options.max_draft
        self._runner = runner

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Return the state; the prompt is read at the first draft."""
        return self._runner.start(request)

    def propose(self, requests: Sequence[DraftRequest[DraftSequence]]) -> Sequence[Draft]:
        """Return the drafts; those of other drafters count towards max_draft."""
        drafts = [Draft()] * len(requests)
        jobs: dict[int, DraftJob] = {}
        for i, request in enumerate(requests):
            max_tokens = min(request.max_tokens, self._max_draft - len(request.draft_prefix))
            if max_tokens > 0:
                jobs[i] = self._runner.new_job(request.state, request, max_tokens)
        for i, draft in zip(jobs, self._runner.draft([*jobs.values()]), strict=True):
            drafts[i] = draft
        return drafts

    def observe(
        self, state: DraftSequence, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Update the sampling state."""
        self._runner.observe(state, result.emitted)

    def finish(self, state: DraftSequence, text: Sequence[int]) -> None:
        """Release the cache."""
        self._runner.release(state)


METHOD = Method(
    kind="drafter",
    name="draft-model",
    summary="A smaller, faster model writes the draft, with the request's own noise.",
    source="Leviathan et al., arXiv:2211.17192; Daliri et al., arXiv:2408.07978",
    target="plait.decoders.speculative.draft_model.make:draft_model",
    options=DraftModelOptions,
    needs=frozenset({"draft_model"}),
)
