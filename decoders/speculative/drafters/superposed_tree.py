"""Superposed tree: k different drafts of the draft model, for one pass per position.

The paper writes k short completions this way and returns them as they are, which is `superposed`.
Here they are the branches of a tree that the target verifies, so the text is the one without them.
Unlike a chain, a tree continues where the draft model's best token was not the target's.

Law: none of its own; every draft is verified. Cost: `length` passes of the draft model a step, for
any `drafts`, and drafts * top * 5 lookups a position.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400; presets p15-d3 and p15-d10 are the
published ones for prompts of 15 tokens. The paper counts n-grams in 200,000 documents of RedPajama;
here they are those of the namespace, into which a corpus can be imported (docs/speculation.md).
Without n-grams only the draft model tells the drafts apart. Drafts should be short: they share one
cache entry per position, which fits each of them less and less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, StoreOptions
from plait.decoders.speculative.drafters.draft_model import DraftModelReadOptions

if TYPE_CHECKING:
    from plait.decoders.speculative.draft_model.runner import DraftModelRunner, DraftSequence
    from plait.decoders.speculative.draft_model.superposition import SuperposedBeamSearch


class SuperpositionOptions(DraftModelReadOptions, StoreOptions):
    """How many drafts, and what tells them apart."""

    drafts: int = Field(3, ge=1, le=16, description="Most drafts.")
    alpha: float = Field(0.54, ge=0, lt=1, description="Weight of the n-grams.")
    temperature: float = Field(0.06, gt=0, le=2, description="Of the draft model.")
    top: int = Field(9, ge=1, le=64, description="Tokens considered at each position.")


class SuperposedTreeOptions(SuperpositionOptions):
    """The size of the tree."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Most tokens of the tree.")
    length: int = Field(6, ge=1, le=20, description="Most tokens of a branch.")


class SuperposedTreeDrafter(Drafter["DraftSequence"]):
    """Drafts trees with the draft model."""

    name: ClassVar[str] = "superposed-tree"

    def __init__(
        self, length: int, runner: DraftModelRunner, beam_search: SuperposedBeamSearch
    ) -> None:
        self._length = length
        self._runner = runner
        self._beam_search = beam_search

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Return the state; the prompt is read at the first draft."""
        return self._runner.start(request)

    def propose(self, requests: Sequence[DraftRequest[DraftSequence]]) -> Sequence[Draft]:
        """Return trees that follow the text and the draft prefix."""
        jobs = []
        for request in requests:
            max_tokens = min(request.max_tokens, self._length)
            jobs.append(self._runner.new_job(request.state, request, max_tokens))
        beams = self._beam_search.search(jobs)
        return [Draft() if beam is None else beam.tree() for beam in beams]

    def observe(
        self, state: DraftSequence, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Update the sampling state."""
        self._runner.observe(state, result.emitted)

    def finish(self, state: DraftSequence, text: Sequence[int]) -> None:
        """Release the cache."""
        self._runner.release(state)


PRESETS = {
    "p15-d3": {"drafts": 3, "alpha": 0.54, "temperature": 0.06, "top": 9},
    "p15-d10": {"drafts": 10, "alpha": 0.54, "temperature": 0.12, "top": 30},
}
METHOD = Method(
    kind="drafter",
    name="superposed-tree",
    summary="A tree of several drafts, for one pass of the draft model per position.",
    source="Superposed Decoding, arXiv:2405.18400",
    target="plait.decoders.speculative.draft_model.make:superposed_tree",
    options=SuperposedTreeOptions,
    needs=frozenset({"draft_model"}),
    presets=PRESETS,
)
