"""Superposed tree: k drafts that differ, for one pass of the second model a position.

The paper writes k short completions this way and returns them as they are, which is `superposed`.
Here they are the branches of a tree that the target verifies, so the text is the one without them;
unlike a chain, a tree goes on where the second model's best token was not the target's.

Law: none of its own; verified as every draft. Cost: `length` passes of the second model a step,
whatever `drafts` is; drafts * top * 5 look-ups a position.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400; presets p15-d3 and p15-d10 are the
published ones for prompts of 15 tokens. Its n-grams are counted in 200,000 documents of RedPajama;
here they are those of the namespace, into which a corpus may be imported (docs/speculation.md), and
without any the drafts differ by the model alone. Drafts end early: they share one cache column a
position, which says less and less of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, StoreOptions
from plait.decoders.speculative.drafters.draft_model import DraftModelReadOptions

if TYPE_CHECKING:
    from plait.decoders.speculative.draft_model.runner import DraftModelRunner, DraftSequence
    from plait.decoders.speculative.draft_model.superposition import SuperposedBeamSearch


class SuperpositionOptions(DraftModelReadOptions, StoreOptions):
    """How many drafts, and what tells them apart."""

    drafts: int = Field(3, ge=1, le=16, description="Drafts, at most.")
    alpha: float = Field(0.54, ge=0, lt=1, description="Weight of the n-grams.")
    temperature: float = Field(0.06, gt=0, le=2, description="Of the second model's law.")
    top: int = Field(9, ge=1, le=64, description="Tokens that are looked at, at each position.")


class SuperposedTreeOptions(SuperpositionOptions):
    """How large a tree."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Tokens of the tree, at most.")
    length: int = Field(6, ge=1, le=20, description="Tokens of a branch, at most.")


class SuperposedTreeDrafter:
    """Asks the second model for trees."""

    name: ClassVar[str] = "superposed-tree"

    def __init__(
        self, length: int, runner: DraftModelRunner, superposer: SuperposedBeamSearch
    ) -> None:
        self._length = length
        self._chains = runner
        self._superposer = superposer

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Read nothing yet: the prompt is read when the first draft is asked for."""
        return self._chains.start(request)

    def propose(self, requests: Sequence[DraftRequest[DraftSequence]]) -> Sequence[Draft]:
        """Return trees behind what others have drafted."""
        jobs = []
        for request in requests:
            max_tokens = min(request.max_tokens, self._length)
            jobs.append(
                self._chains.job(
                    request.state,
                    request.text,
                    request.draft_prefix,
                    max_tokens,
                    request.constraint,
                )
            )
        beams = self._superposer.draw(jobs)
        return [Draft() if beam is None else beam.tree() for beam in beams]

    def commit(self, state: DraftSequence, text: Sequence[int], result: VerificationResult) -> None:
        """Take note of the text."""
        self._chains.commit(state, result.emitted)

    def finish(self, state: DraftSequence, text: Sequence[int]) -> None:
        """Give back the cache."""
        self._chains.finish(state)


PRESETS = {
    "p15-d3": {"drafts": 3, "alpha": 0.54, "temperature": 0.06, "top": 9},
    "p15-d10": {"drafts": 10, "alpha": 0.54, "temperature": 0.12, "top": 30},
}
METHOD = Method(
    kind="drafter",
    name="superposed-tree",
    summary="A tree of a second model's drafts, all at once: it reads the sum of them.",
    source="Superposed Decoding, arXiv:2405.18400",
    target="plait.decoders.speculative.draft_model.make:superposed_tree",
    options=SuperposedTreeOptions,
    needs=frozenset({"draft_model"}),
    presets=PRESETS,
)
