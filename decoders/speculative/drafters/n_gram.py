"""N-gram: what followed the last tokens where they occurred earlier in the text (prompt lookup).

A hash table, extended token by token, holds where each n-gram of the text ended, the latest
occurrence first. The longest n-gram at the end of the text, n in [min_n, max_n], that has occurred
before is followed. Its latest occurrences vote on every draft token. A tie goes to the latest
occurrence, outvoted occurrences are left out from then on, and the draft ends where they disagree
too much. An occurrence that reaches the end of the text continues in the draft itself, so
repetitions are continued.

Law: none of its own; every draft is verified. Cost: O(max_n - min_n) a token of the text, and
O(occurrences) a token of the draft. Memory: the n-grams of at most the last 2 * WINDOW tokens.
Source: Saxena 2023, prompt lookup decoding; vLLM's method ngram (preset `vllm`), which searches the
text at every step for the earliest occurrence and copies what followed, up to the end of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.contract.text import Text
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.match_prob import match_prob
from plait.decoders.speculative.prompt_cache import PromptCache, PromptCacheEntry

WINDOW = 2**14  # tokens that stay indexed when the index of a longer text is rebuilt
NOWHERE = -1


class NGramOptions(DraftOptions):
    """Which n-grams are looked up, and which occurrences the draft follows."""

    min_n: int = Field(2, ge=1, le=32, description="Fewest tokens that must match.")
    max_n: int = Field(6, ge=1, le=32, description="Most tokens that are matched.")
    prefer: Literal["latest", "earliest"] = Field("latest", description="Which occurrences vote.")
    occurrences: int = Field(8, ge=1, le=64, description="Most occurrences that vote.")
    agreement: float = Field(
        0.4, ge=0, le=1, description="Share of the votes below which the draft ends."
    )
    overlap: bool = Field(True, description="At the end of the text, continue in the draft.")

    @model_validator(mode="after")
    def _possible(self) -> NGramOptions:
        if self.min_n > self.max_n:
            raise ValueError("min_n is larger than max_n")
        if self.prefer == "earliest" and self.occurrences > 1:
            raise ValueError("of the earliest occurrences there is one: set occurrences to 1")
        return self


@dataclass(slots=True)
class NGramTable:
    """Where the n-grams of one size end: the indices of the tokens that follow them."""

    size: int
    ends: dict[tuple[int, ...], int]  # n-gram -> its latest (or earliest) end
    before: list[int]  # by end - base: the previous end of the same n-gram


class NGramIndex:
    """Where the n-grams of one text end."""

    def __init__(self, sizes: Sequence[int], *, latest: bool) -> None:
        self._sizes = sizes
        self._latest = latest
        self._base = 0  # the first token that is indexed
        self.num_tokens = 0  # tokens of the text, up to the last that is indexed
        self.tables: list[NGramTable] = []
        self._start(0)

    def extend(self, text: Sequence[int]) -> None:
        """Index the n-grams that end before the text's last token, and so have a next token."""
        if len(text) - self._base > 2 * WINDOW:
            self._start(len(text) - WINDOW)
        first, base = self.num_tokens, self._base
        for table in self.tables:
            size, ends, before = table.size, table.ends, table.before
            before.extend([NOWHERE] * (min(base + size, len(text)) - base - len(before)))
            for stop in range(max(first, base + size), len(text)):
                n_gram = tuple(text[stop - size : stop])
                earlier = ends.get(n_gram, NOWHERE)
                before.append(earlier)
                if self._latest or earlier == NOWHERE:
                    ends[n_gram] = stop
        self.num_tokens = max(len(text), first)

    def copy(self) -> NGramIndex:
        """Return an independent copy."""
        made = NGramIndex(self._sizes, latest=self._latest)
        made._base, made.num_tokens = self._base, self.num_tokens
        made.tables = [NGramTable(t.size, t.ends.copy(), t.before.copy()) for t in self.tables]
        return made

    def find(self, table: NGramTable, n_gram: tuple[int, ...], count: int) -> list[int]:
        """Return at most `count` ends of an n-gram, the preferred one first."""
        found: list[int] = []
        end = table.ends.get(n_gram, NOWHERE)
        while end != NOWHERE and len(found) < count:
            found.append(end)
            end = table.before[end - self._base]
        return found

    def _start(self, base: int) -> None:
        """Empty the index; it covers the text from token `base` on."""
        self.tables = [NGramTable(size, {}, []) for size in self._sizes]
        self._base = self.num_tokens = base


@dataclass(slots=True)
class NGramState:
    """The index of one sequence's text."""

    text: Text
    shared: PromptCacheEntry[NGramIndex] | None  # the prompt's index, until the first draft
    index: NGramIndex

    def covers(self, length: int) -> bool:
        """Tell whether the index holds nothing behind the first `length` tokens of the text."""
        return self.shared is None and self.index.num_tokens <= length


class NGramDrafter(Drafter[NGramState]):
    """Looks up the end of each text in the text itself."""

    name: ClassVar[str] = "n-gram"

    def __init__(self, options: NGramOptions) -> None:
        self._options = options
        self._sizes = range(options.max_n, options.min_n - 1, -1)
        self._prompt_cache = PromptCache(self._indexed, NGramIndex.copy)

    def start(self, request: DecodeRequest) -> NGramState:
        """Return the state; the prompt is indexed at the first draft."""
        text = request.text
        return NGramState(text, self._prompt_cache.join(text.prompt), self._indexed([]))

    def fork(self, state: NGramState, request: DecodeRequest) -> NGramState:
        """Copy the index if the texts agree as far as it goes. Cost: O(indexed n-grams)."""
        if not state.covers(state.text.num_shared(request.text)):
            return self.start(request)
        return NGramState(request.text, None, state.index.copy())

    def truncate(self, state: NGramState, request: DecodeRequest) -> NGramState:
        """Keep the index if the text was cut behind it."""
        if state.covers(len(request.text)):
            return state
        self.finish(state, request.text)
        return self.start(request)

    def propose(self, requests: Sequence[DraftRequest[NGramState]]) -> Sequence[Draft]:
        """Return what followed the last tokens at earlier occurrences."""
        return [self._draft(request) for request in requests]

    def observe(self, state: NGramState, text: Sequence[int], result: VerificationResult) -> None:
        """Do nothing: the index is extended at the next draft."""

    def finish(self, state: NGramState, text: Sequence[int]) -> None:
        """Leave the cache of the prompt's index."""
        if state.shared is not None:
            self._prompt_cache.leave(state.shared)

    def _indexed(self, text: Sequence[int]) -> NGramIndex:
        index = NGramIndex(self._sizes, latest=self._options.prefer == "latest")
        index.extend(text)
        return index

    def _draft(self, request: DraftRequest[NGramState]) -> Draft:
        state = request.state
        if state.shared is not None:
            state.index = self._prompt_cache.take(state.shared)
            state.shared = None
        index = state.index
        index.extend(request.text)
        last = [*request.text[-self._sizes.start :], *request.draft_prefix]
        for table in index.tables:
            if len(last) >= table.size:
                n_gram = tuple(last[len(last) - table.size :])
                ends = index.find(table, n_gram, self._options.occurrences)
                if ends:
                    return self._follow(request, ends, table.size)
        return Draft()

    def _follow(self, request: DraftRequest[NGramState], ends: list[int], size: int) -> Draft:
        """Return what followed the occurrences that end at `ends`, by majority."""
        text, length = request.text, len(request.text)
        drafted = list(request.draft_prefix)  # the draft so far, from the end of the text on
        probs: list[float] = []
        for step in range(request.max_tokens):
            votes: dict[int, list[int]] = {}
            for end in ends:
                at = end + step
                if at < length:
                    votes.setdefault(text[at], []).append(end)
                elif self._options.overlap:
                    votes.setdefault(drafted[at - length], []).append(end)
            if not votes:
                break
            token = max(votes, key=lambda each: len(votes[each]))
            share = len(votes[token]) / sum(map(len, votes.values()))
            if share < self._options.agreement:
                break
            ends = votes[token]
            drafted.append(token)
            probs.append(match_prob(size + step, len(ends), share))
        return Draft(drafted[len(request.draft_prefix) :], probs)


def make(options: NGramOptions, *, context: DrafterContext) -> NGramDrafter:
    """Build the drafter."""
    return NGramDrafter(options)


METHOD = Method(
    kind="drafter",
    name="n-gram",
    summary="What followed the last tokens where they occurred earlier in the text.",
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
