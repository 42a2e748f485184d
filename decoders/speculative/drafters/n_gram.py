"""N-gram: what followed the last tokens when they stood in the text before (prompt lookup).

An index of hashes, extended token by token, says where each run of n tokens has ended, the latest
place first. The longest run in [min_n, max_n] that has occurred is followed: its latest occurrences
vote on every token, a tie goes to the latest of them, those that were outvoted drop out, and where
they disagree too much the draft ends. An occurrence that runs into the end of the text goes on with
the draft itself, so that what repeats is repeated further.

Law: none of its own; verified as every draft. Cost: O(max_n - min_n) a token of the text, and
O(occurrences) a token of the draft. Memory: the runs of the last 2 * WINDOW tokens at most.
Source: Saxena 2023, prompt lookup decoding; vLLM's method ngram, which is the preset `vllm`: it
scans the text anew at every step for the earliest occurrence, and copies it to the end of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.match_prob import match_prob
from plait.decoders.speculative.prompt_cache import PromptCache, PromptCacheEntry

WINDOW = 2**14  # tokens that stay indexed when a longer text is indexed anew
NOWHERE = -1


class NGramOptions(DraftOptions):
    """Which runs are looked up, and whom of their occurrences the draft follows."""

    min_n: int = Field(2, ge=1, le=32, description="Tokens that must match, at least.")
    max_n: int = Field(6, ge=1, le=32, description="Tokens that may match, at most.")
    prefer: Literal["latest", "earliest"] = Field("latest", description="Which occurrences vote.")
    occurrences: int = Field(8, ge=1, le=64, description="Occurrences that vote, at most.")
    agreement: float = Field(
        0.4, ge=0, le=1, description="Share of the votes below which the draft ends."
    )
    overlap: bool = Field(True, description="Behind the end of the text, go on with the draft.")

    @model_validator(mode="after")
    def _possible(self) -> NGramOptions:
        if self.min_n > self.max_n:
            raise ValueError("min_n is larger than max_n")
        if self.prefer == "earliest" and self.occurrences > 1:
            raise ValueError("of the earliest occurrences there is one: set occurrences to 1")
        return self


@dataclass(slots=True)
class NGramTable:
    """The runs of one size, by the indices of the tokens that follow them."""

    size: int
    ends: dict[tuple[int, ...], int]  # run -> its latest (or earliest) end
    before: list[int]  # from Index.base on: the end of the same run before this one


class NGramIndex:
    """Where runs of one text's tokens ended."""

    def __init__(self, sizes: Sequence[int], *, latest: bool) -> None:
        self._sizes = sizes
        self._latest = latest
        self._base = 0  # the first token that is indexed
        self._length = 0  # tokens that are, and those before them
        self.runs: list[NGramTable] = []
        self._start(0)

    def extend(self, text: Sequence[int]) -> None:
        """Index the runs that end before the text's last token, which nothing follows yet."""
        if len(text) - self._base > 2 * WINDOW:
            self._start(len(text) - WINDOW)
        first, base = self._length, self._base
        for runs in self.runs:
            size, ends, before = runs.size, runs.ends, runs.before
            before.extend([NOWHERE] * (min(base + size, len(text)) - base - len(before)))
            for stop in range(max(first, base + size), len(text)):
                run = tuple(text[stop - size : stop])
                earlier = ends.get(run, NOWHERE)
                before.append(earlier)
                if self._latest or earlier == NOWHERE:
                    ends[run] = stop
        self._length = max(len(text), first)

    def copy(self) -> NGramIndex:
        """Return an index of the same text that goes its own way."""
        made = NGramIndex(self._sizes, latest=self._latest)
        made._base, made._length = self._base, self._length
        made.runs = [NGramTable(r.size, r.ends.copy(), r.before.copy()) for r in self.runs]
        return made

    def places(self, runs: NGramTable, run: tuple[int, ...], count: int) -> list[int]:
        """Return where a run ended, at most so often, beginning with the preferred place."""
        found: list[int] = []
        place = runs.ends.get(run, NOWHERE)
        while place != NOWHERE and len(found) < count:
            found.append(place)
            place = runs.before[place - self._base]
        return found

    def _start(self, base: int) -> None:
        """Begin with an empty index of the text from a token on."""
        self.runs = [NGramTable(size, {}, []) for size in self._sizes]
        self._base = self._length = base


@dataclass(slots=True)
class NGramState:
    """What is known of one sequence."""

    share: (
        PromptCacheEntry[NGramIndex] | None
    )  # of the prompt's index, until the first draft is asked for
    index: NGramIndex


class NGramDrafter:
    """Looks the end of each text up in the text itself."""

    name: ClassVar[str] = "n-gram"

    def __init__(self, options: NGramOptions) -> None:
        self._options = options
        self._sizes = range(options.max_n, options.min_n - 1, -1)
        self._prompt_cache = PromptCache(self._indexed, NGramIndex.copy)

    def start(self, request: DecodeRequest) -> NGramState:
        """Index nothing yet: the prompt is read when the first draft is asked for."""
        return NGramState(self._prompt_cache.join(request.prompt_token_ids), self._indexed([]))

    def propose(self, requests: Sequence[DraftRequest[NGramState]]) -> Sequence[Draft]:
        """Return what followed the last tokens before."""
        return [self._draft(request) for request in requests]

    def commit(self, state: NGramState, text: Sequence[int], result: VerificationResult) -> None:
        """Learn nothing: the text itself is the store."""

    def finish(self, state: NGramState, text: Sequence[int]) -> None:
        """Leave what was shared to the others."""
        if state.share is not None:
            self._prompt_cache.leave(state.share)

    def _indexed(self, text: Sequence[int]) -> NGramIndex:
        index = NGramIndex(self._sizes, latest=self._options.prefer == "latest")
        index.extend(text)
        return index

    def _draft(self, request: DraftRequest[NGramState]) -> Draft:
        own = request.state
        if own.share is not None:
            own.index = self._prompt_cache.take(own.share)
            own.share = None
        index = own.index
        index.extend(request.text)
        tail = [*request.text[-self._sizes.start :], *request.draft_prefix]
        for runs in index.runs:
            if len(tail) >= runs.size:
                run = tuple(tail[len(tail) - runs.size :])
                places = index.places(runs, run, self._options.occurrences)
                if places:
                    return self._follow(request, places, runs.size)
        return Draft()

    def _follow(self, request: DraftRequest[NGramState], places: list[int], size: int) -> Draft:
        """Return what followed the occurrences that end at some places, by their votes."""
        text, length = request.text, len(request.text)
        behind = list(request.draft_prefix)  # what follows the text, as far as it is drafted
        acceptance_probs: list[float] = []
        for step in range(request.max_tokens):
            votes: dict[int, list[int]] = {}
            for place in places:
                at = place + step
                if at < length:
                    votes.setdefault(text[at], []).append(place)
                elif self._options.overlap:
                    votes.setdefault(behind[at - length], []).append(place)
            if not votes:
                break
            token = max(votes, key=lambda each: len(votes[each]))
            share = len(votes[token]) / sum(map(len, votes.values()))
            if share < self._options.agreement:
                break
            places = votes[token]
            behind.append(token)
            acceptance_probs.append(match_prob(size + step, len(places), share))
        return Draft(behind[len(request.draft_prefix) :], acceptance_probs)


def make(options: NGramOptions, *, context: DrafterContext) -> NGramDrafter:
    """Build the drafter."""
    return NGramDrafter(options)


METHOD = Method(
    kind="drafter",
    name="n-gram",
    summary="What followed the last tokens when they stood in the text before.",
    source="Saxena 2023, prompt lookup decoding",
    target="plait.decoders.speculative.drafters.n_gram:make",
    options=NGramOptions,
    presets={
        "vllm": {
            "min_n": 5,
            "max_n": 5,
            "prefer": "earliest",
            "occurrences": 1,
            "agreement": 0,
            "overlap": False,
        }
    },
    replays=True,
)
