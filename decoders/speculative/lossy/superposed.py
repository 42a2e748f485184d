"""Superposed decoding: the n short completions of a request, for one pass a position.

The second model writes `drafts` texts at once, as `superposed-tree` does; sequence i of the request
takes the i-th best of them as it is, and the target reads them all in one pass, which gives their
logprobs. Behind `length` tokens, or where bans or a constraint forbid a token, a text goes on as it
is drawn; sequences beyond `drafts` are drawn from the start. The paper writes with the model
itself: so does a worker with `--draft-model self`.

Lossy: a draft is not drawn but found, and all of them are heard together. Greedy requests have one
text, so they are refused. Cost: `length` passes of the second model and one of the target.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400, and what superposed_tree.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method, MethodError
from plait.decoders.sampling.params import GREEDY_BELOW
from plait.decoders.speculative.config import ACCEPTANCE_RULE
from plait.decoders.speculative.drafters.superposed_tree import PRESETS, SuperpositionOptions
from plait.decoders.speculative.prompt_cache import PromptCache, PromptCacheEntry

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.speculative.draft_model.runner import DraftModelRunner
    from plait.decoders.speculative.draft_model.superposition import SuperposedBeamSearch


class SuperposedOptions(SuperpositionOptions):
    """How long."""

    max_draft: int = Field(20, ge=1, le=20, description="Tokens fed in one step, at most.")
    always: bool = Field(True, description="Also where reading all drafts takes more time.")
    length: int = Field(10, ge=1, le=20, description="Tokens of a completion, at most.")


@dataclass(slots=True)
class SuperposedTexts:
    """What the sequences of one request are to say; None: nothing is written yet."""

    found: list[tuple[int, ...]] | None = None


@dataclass(slots=True)
class SuperposedState:
    """One sequence of a request."""

    request: DecodeRequest
    share: PromptCacheEntry[SuperposedTexts] | None  # until the first draft is asked for
    text: tuple[int, ...] = ()  # what it is to say


class SuperposedDrafter:
    """Writes all sequences of a request at once, and lets what is written stand."""

    name: ClassVar[str] = "superposed"

    def __init__(
        self, length: int, runner: DraftModelRunner, superposer: SuperposedBeamSearch
    ) -> None:
        self._length = length
        self._chains = runner
        self._superposer = superposer
        self._prompt_cache: PromptCache[SuperposedTexts] = PromptCache(
            lambda prompt: SuperposedTexts(), lambda texts: texts
        )

    def start(self, request: DecodeRequest) -> SuperposedState:
        """Write nothing yet.

        Raises:
            MethodError: the request is greedy.
        """
        if request.sampling.temperature < GREEDY_BELOW:
            raise MethodError(
                "superposed writes texts that differ, and temperature 0 allows one; raise it.",
                "temperature",
            )
        return SuperposedState(request, self._prompt_cache.join(request.prompt_token_ids))

    def propose(self, requests: Sequence[DraftRequest[SuperposedState]]) -> Sequence[Draft]:
        """Return what each sequence is to say next."""
        return [self._draft(request) for request in requests]

    def commit(
        self, state: SuperposedState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Learn nothing."""

    def finish(self, state: SuperposedState, text: Sequence[int]) -> None:
        """Give up what was not asked for."""
        if state.share is not None:
            self._prompt_cache.leave(state.share)

    def pick(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Let the draft stand."""
        return token_ids[0]

    def trusts(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Trust nothing that the target has not read."""
        return False

    def _draft(self, request: DraftRequest[SuperposedState]) -> Draft:
        state = request.state
        if state.share is not None:
            texts = self._prompt_cache.take(state.share)
            state.share = None
            if texts.found is None:
                texts.found = self._write(state.request)
            index = state.request.sequence_index
            state.text = texts.found[index] if index < len(texts.found) else ()
        said = (*request.text[len(state.request.prompt_token_ids) :], *request.draft_prefix)
        if state.text[: len(said)] != said:
            return Draft()
        rest = state.text[len(said) :][: request.max_tokens]
        return Draft(rest, [1.0] * len(rest), can_extend=not rest)

    def _write(self, request: DecodeRequest) -> list[tuple[int, ...]]:
        """Return the drafts behind a prompt, the best one first; none if there is no room."""
        sequence = self._chains.start(request)
        max_tokens = min(self._length, request.max_tokens)
        job = self._chains.job(sequence, request.prompt_token_ids, (), max_tokens, None)
        beam, read = None, -1
        while beam is None and sequence.cache.length > read:  # a long prompt is read in parts
            read = sequence.cache.length
            (beam,) = self._superposer.draw([job])
        self._chains.finish(sequence)
        return [] if beam is None else [path.token_ids for path in beam.paths()]


METHOD = Method(
    kind="drafter",
    name="superposed",
    summary="The short completions of one request, written together as one. Lossy.",
    source="Superposed Decoding, arXiv:2405.18400",
    target="plait.decoders.speculative.draft_model.make:superposed",
    options=SuperposedOptions,
    needs=frozenset({"draft_model"}),
    part=ACCEPTANCE_RULE,
    lossy=True,
    presets=PRESETS,
)
