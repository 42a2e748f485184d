"""Superposed decoding: the n short completions of a request, for one pass per position.

The draft model writes `drafts` completions at once, as `superposed-tree` does. Sequence i of the
request takes the i-th best of them unchanged, and the target reads it in one pass, which gives its
log-probabilities. After `length` tokens, or where a ban or a constraint forbids a token, sampling
takes over; sequences beyond `drafts` are sampled from the start. The paper writes with the model
itself; so does a worker with `--draft-model self`.

Lossy: a draft is not sampled but searched, and all of them share their logits. A greedy request has
only one completion, so it is refused. Cost: `length` passes of the draft model and one of the
target.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400; see also superposed_tree.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method, MethodError
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import GREEDY_BELOW
from plait.decoders.speculative.config import ACCEPTANCE_RULE
from plait.decoders.speculative.drafters.superposed_tree import PRESETS, SuperpositionOptions
from plait.decoders.speculative.prompt_cache import PromptCache, PromptCacheEntry

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.speculative.draft_model.runner import DraftModelRunner
    from plait.decoders.speculative.draft_model.superposition import SuperposedBeamSearch


class SuperposedOptions(SuperpositionOptions):
    """The length of the completions."""

    max_draft: int = Field(20, ge=1, le=20, description="Most tokens fed in one step.")
    always: bool = Field(True, description="Draft whether or not it pays.")
    length: int = Field(10, ge=1, le=20, description="Most tokens of a completion.")


@dataclass(slots=True)
class SuperposedTexts:
    """The completions of one request, best first; None: not written yet."""

    found: list[tuple[int, ...]] | None = None


@dataclass(slots=True)
class SuperposedState:
    """One sequence of a request, and the completion that it takes."""

    request: DecodeRequest
    shared: PromptCacheEntry[SuperposedTexts] | None  # of the request, until the first draft
    completion: tuple[int, ...] = ()


class SuperposedDrafter(Drafter[SuperposedState]):
    """Writes all completions of a request at once, and accepts them unchanged."""

    name: ClassVar[str] = "superposed"

    def __init__(
        self, length: int, runner: DraftModelRunner, beam_search: SuperposedBeamSearch
    ) -> None:
        self._length = length
        self._runner = runner
        self._beam_search = beam_search
        self._prompt_cache: PromptCache[SuperposedTexts] = PromptCache(
            lambda prompt: SuperposedTexts(), lambda texts: texts
        )

    def start(self, request: DecodeRequest) -> SuperposedState:
        """Return the state; completions are written at the first draft.

        Raises:
            MethodError: the request is greedy.
        """
        if request.sampling.temperature < GREEDY_BELOW:
            raise MethodError(
                "superposed writes texts that differ, and temperature 0 allows one; raise it.",
                "temperature",
            )
        return SuperposedState(request, self._prompt_cache.join(request.text.prompt))

    def propose(self, requests: Sequence[DraftRequest[SuperposedState]]) -> Sequence[Draft]:
        """Return the rest of each sequence's completion."""
        return [self._draft(request) for request in requests]

    def observe(
        self, state: SuperposedState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Do nothing: the completion is fixed."""

    def finish(self, state: SuperposedState, text: Sequence[int]) -> None:
        """Leave the prompt cache."""
        if state.shared is not None:
            self._prompt_cache.leave(state.shared)

    def select(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the draft token."""
        return token_ids[0]

    def accepts_unverified(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Return False: the target reads every token."""
        return False

    def _draft(self, request: DraftRequest[SuperposedState]) -> Draft:
        state = request.state
        if state.shared is not None:
            texts = self._prompt_cache.take(state.shared)
            state.shared = None
            if texts.found is None:
                texts.found = self._write(state.request)
            index = state.request.text.noise.stream
            state.completion = texts.found[index] if index < len(texts.found) else ()
        output = request.text[state.request.text.prompt_length :]
        written = (*output, *request.draft_prefix)
        if state.completion[: len(written)] != written:
            return Draft()
        rest = state.completion[len(written) :][: request.max_tokens]
        return Draft(rest, [1.0] * len(rest), can_extend=not rest)

    def _write(self, request: DecodeRequest) -> list[tuple[int, ...]]:
        """Return the completions of a prompt, best first; none if the cache has no blocks."""
        text = Text(request.text.prompt, request.text.noise)
        sequence = self._runner.start(replace(request, text=text))
        max_tokens = min(self._length, request.max_tokens)
        behind = DraftRequest(sequence, text, (), max_tokens, None)
        job = self._runner.new_job(sequence, behind, max_tokens)
        beam, read = None, -1
        while beam is None and sequence.cache.length > read:  # a long prompt is read in chunks
            read = sequence.cache.length
            (beam,) = self._beam_search.search([job])
        self._runner.release(sequence)
        return [] if beam is None else [each.token_ids for each in beam.ranked()]


METHOD = Method(
    kind="drafter",
    name="superposed",
    summary="All short completions of one request, written at once. Lossy.",
    source="Superposed Decoding, arXiv:2405.18400",
    target="plait.decoders.speculative.draft_model.make:superposed",
    options=SuperposedOptions,
    needs=frozenset({"draft_model"}),
    part=ACCEPTANCE_RULE,
    lossy=True,
    presets=PRESETS,
)
