"""Suffix: what most often followed the suffixes of the text, here and in earlier outputs.

Each sequence has a suffix automaton of its own text; each namespace has one of its earlier outputs.
Every suffix of the text that occurs in one of them gives a candidate. After a suffix of m tokens,
up to factor * m + offset tokens are followed, each the most frequent next token, as long as the
product of their relative frequencies is at least `cut`. The score of a candidate is the sum of
these products, and the best candidate is the draft; of equals the one with the longest suffix, the
text's own before the namespace's. With `tree` the tokens with the largest products are drafted
instead, whichever tokens they follow.

Law: none of its own; every draft is verified. Cost: O(depth) a token of the text at worst, usually
three to six suffix links; the same a link to draft.
Source: Oliaro et al. 2024, SuffixDecoding, arXiv:2411.04975; ArcticInference and vLLM's method
suffix (preset `vllm`). Differs from them in the stated probability, which leaves out the occurrence
at the end of the text, where nothing has followed yet; and in eviction, which drops half of what
the namespace keeps instead of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count as counter
from typing import ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.contract.text import Text
from plait.decoders.speculative.config import StoreOptions
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.match_prob import match_prob
from plait.decoders.speculative.prompt_cache import PromptCache, PromptCacheEntry
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.decoders.speculative.stores.suffixes import (
    MAX_DEPTH,
    NONE,
    ROOT,
    SuffixAutomaton,
    suffix_index,
)

WINDOW = 2**14  # tokens that stay indexed when the index of a longer text is rebuilt


class SuffixOptions(StoreOptions):
    """How far suffixes are followed."""

    max_draft: int = Field(32, ge=1, le=64, description="Most tokens of one draft.")
    depth: int = Field(
        MAX_DEPTH, ge=2, le=MAX_DEPTH, description="Most tokens of a suffix and its draft."
    )
    factor: float = Field(1.0, ge=0, le=64, description="Draft tokens per token of the suffix.")
    offset: float = Field(0.0, ge=-64, le=64, description="Draft tokens in addition.")
    cut: float = Field(0.1, ge=0, le=1, description="Product of frequencies below which it ends.")
    tree: bool = Field(False, description="Draft the tokens of the largest products.")


@dataclass(slots=True)
class SuffixCursor:
    """The longest suffix of a text that occurs in an automaton of earlier texts."""

    automaton: SuffixAutomaton
    num_tokens: int = NONE  # of the automaton when the suffix was looked up
    read: int = 0  # tokens of the text that are covered
    state: int = ROOT
    matched: int = 0

    def advance(self, text: Sequence[int]) -> None:
        """Read the text to its end; start again if the automaton has grown."""
        automaton = self.automaton
        if self.num_tokens != automaton.num_tokens:
            self.num_tokens = automaton.num_tokens
            self.read = max(len(text) - MAX_DEPTH, 0)
            self.state, self.matched = ROOT, 0
        state, matched = self.state, self.matched
        for token in text[self.read :]:
            state, matched = automaton.follow(state, matched, token)
        self.read, self.state, self.matched = len(text), state, matched


@dataclass(slots=True)
class SuffixState:
    """The suffix automaton of one sequence's text, and its matches in earlier texts."""

    text: Text
    namespace: str
    shared: PromptCacheEntry[SuffixAutomaton] | None  # the prompt's, until the first draft
    automaton: SuffixAutomaton = field(default_factory=lambda: SuffixAutomaton(MAX_DEPTH))
    read: int = 0  # tokens of the text that the automaton covers
    cursors: list[SuffixCursor] = field(default_factory=list)

    def covers(self, length: int) -> bool:
        """Tell whether nothing behind the first `length` tokens of the text was read."""
        return self.shared is None and self.read <= length


@dataclass(slots=True)
class SuffixCandidate:
    """A possible draft."""

    token_ids: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    parents: list[int] | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class SuffixMatch:
    """The longest suffix of a text that occurs in an automaton, and with it all shorter ones."""

    automaton: SuffixAutomaton
    state: int
    matched: int
    is_end: bool  # one of its occurrences is the end of the automaton's own text


class SuffixDrafter(Drafter[SuffixState]):
    """Follows the suffixes of each text in the text itself and in earlier texts."""

    name: ClassVar[str] = "suffix"

    def __init__(self, options: SuffixOptions, stores: DraftStores) -> None:
        self._options = options
        self._stores = stores
        self._prompt_cache = PromptCache(_indexed, SuffixAutomaton.copy)

    def start(self, request: DecodeRequest) -> SuffixState:
        """Return the state; the prompt is indexed at the first draft."""
        text = request.text
        return SuffixState(text, request.namespace, self._prompt_cache.join(text.prompt))

    def fork(self, state: SuffixState, request: DecodeRequest) -> SuffixState:
        """Copy the automaton if the texts agree as far as it goes. Cost: O(its states)."""
        if not state.covers(state.text.num_shared(request.text)):
            return self.start(request)
        cursors = [replace(cursor) for cursor in state.cursors]
        return replace(state, text=request.text, automaton=state.automaton.copy(), cursors=cursors)

    def truncate(self, state: SuffixState, request: DecodeRequest) -> SuffixState:
        """Keep the automaton if the text was cut behind it."""
        if state.covers(len(request.text)):
            return state
        self.finish(state, request.text)
        return self.start(request)

    def propose(self, requests: Sequence[DraftRequest[SuffixState]]) -> Sequence[Draft]:
        """Return the best candidate of each sequence."""
        return [self._draft(request) for request in requests]

    def observe(self, state: SuffixState, text: Sequence[int], result: VerificationResult) -> None:
        """Do nothing: the automaton is extended at the next draft."""

    def finish(self, state: SuffixState, text: Sequence[int]) -> None:
        """Leave the prompt cache; the speculator adds the output to the store."""
        if state.shared is not None:
            self._prompt_cache.leave(state.shared)

    def _draft(self, request: DraftRequest[SuffixState]) -> Draft:
        best, state = SuffixCandidate(), request.state
        if state.shared is not None:
            state.read = len(state.shared.prompt)
            state.automaton = self._prompt_cache.take(state.shared)
            state.shared = None
        matches = [_match_in_text(request)]
        space = self._stores.find(state.namespace)
        if space is not None:
            index = space.index("suffix", suffix_index)
            matches += _matches_in_store(request, index.automata)
        for match in matches:
            best = self._best(match, request.max_tokens, best)
        return Draft(best.token_ids, best.acceptance_probs, best.parents)

    def _best(self, match: SuffixMatch, max_tokens: int, best: SuffixCandidate) -> SuffixCandidate:
        """Return the best candidate of a match and its suffixes, or `best` if none is better."""
        automaton, options = match.automaton, self._options
        state, matched = match.state, min(match.matched, options.depth)
        while state != ROOT:
            most = min(int(options.factor * matched + options.offset), max_tokens)
            if most <= best.score:  # a token adds 1 at most; shorter suffixes allow no more tokens
                break
            shorter = automaton.link[state]
            length = automaton.length[shorter]
            if length < matched:
                if most > options.depth - matched:
                    most = min(max_tokens, self._max_draft(length + 1, matched))
                if most > best.score:
                    found = self._follow(match, state, matched, most)
                    best = found if found.score > best.score else best
                matched = length
            state = shorter
        return best

    def _max_draft(self, shortest: int, longest: int) -> int:
        """Return the most draft tokens over all suffixes with shortest..longest tokens.

        A longer suffix allows more tokens by the factor, and fewer by the depth.
        """
        options = self._options
        crossing = int((options.depth - options.offset) / (options.factor + 1))
        lengths = (min(max(crossing + i, shortest), longest) for i in (0, 1))
        return max(
            min(int(options.factor * length + options.offset), options.depth - length)
            for length in (longest, *lengths)
        )

    def _follow(
        self, match: SuffixMatch, state: int, matched: int, max_tokens: int
    ) -> SuffixCandidate:
        """Return what most often follows one suffix of a match."""
        if self._options.tree:
            return self._tree(match, state, matched, max_tokens)
        automaton, cut = match.automaton, self._options.cut
        following, count, best = automaton.next, automaton.count, automaton.best
        found, product, occurrences = SuffixCandidate(), 1.0, count[state] - match.is_end
        while len(found.token_ids) < max_tokens and (token := best[state]) != NONE:
            child = following[state][token]
            product *= count[child] / count[state]
            if product < cut:
                break
            found.score += product
            found.token_ids.append(token)
            prob = match_prob(matched, count[child], count[child] / occurrences)
            found.acceptance_probs.append(prob)
            state, matched, occurrences = child, matched + 1, count[child]
        return found

    def _tree(
        self, match: SuffixMatch, state: int, matched: int, max_tokens: int
    ) -> SuffixCandidate:
        """Return the tokens with the largest products behind one suffix of a match."""
        automaton = match.automaton
        count, cut = automaton.count, self._options.cut
        parents: list[int] = []
        found = SuffixCandidate(parents=parents)
        # -product, order of arrival, state, token, parent, stated probability
        heap: list[tuple[float, int, int, int, int, float]] = []
        order = counter()

        def offer(state: int, node: int, product: float, occurrences: int, matched: int) -> None:
            for token, child in automaton.next[state].items():
                share = product * count[child] / count[state]
                if share >= cut:
                    prob = match_prob(matched, count[child], count[child] / occurrences)
                    heappush(heap, (-share, next(order), child, token, node, prob))

        offer(state, NONE, 1.0, max(count[state] - match.is_end, 1), matched)
        while heap and len(found.token_ids) < max_tokens:
            product, _, child, token, parent, prob = heappop(heap)
            found.score -= product
            found.token_ids.append(token)
            found.acceptance_probs.append(prob)
            parents.append(parent)
            offer(child, len(parents) - 1, -product, count[child], matched + 1)
        return found


def _match_in_text(request: DraftRequest[SuffixState]) -> SuffixMatch:
    """Return the match of the text in its own automaton."""
    state, text = request.state, request.text
    if len(text) - state.read + state.automaton.num_tokens > 2 * WINDOW:
        state.automaton = SuffixAutomaton(MAX_DEPTH)
        state.read = len(text) - WINDOW
    automaton = state.automaton
    automaton.extend(text[state.read :])
    state.read = len(text)
    at = automaton.counted(automaton.last)
    matched = min(automaton.length[automaton.last], MAX_DEPTH)
    for token in request.draft_prefix:
        at, matched = automaton.follow(at, matched, token)
    return SuffixMatch(automaton, at, matched, not request.draft_prefix)


def _matches_in_store(
    request: DraftRequest[SuffixState], automata: Sequence[SuffixAutomaton]
) -> list[SuffixMatch]:
    """Return the matches in the automata of earlier texts; cursors remember them."""
    state = request.state
    if [cursor.automaton for cursor in state.cursors] != automata:
        state.cursors = [SuffixCursor(each) for each in automata]
    matches = []
    for cursor in state.cursors:
        cursor.advance(request.text)
        at, matched = cursor.state, cursor.matched
        for token in request.draft_prefix:
            at, matched = cursor.automaton.follow(at, matched, token)
        matches.append(SuffixMatch(cursor.automaton, at, matched, False))
    return matches


def _indexed(text: Sequence[int]) -> SuffixAutomaton:
    """Return the automaton of a text, or of its end if it is long."""
    automaton = SuffixAutomaton(MAX_DEPTH)
    automaton.extend(text if len(text) <= 2 * WINDOW else text[-WINDOW:])
    return automaton


def make(options: SuffixOptions, *, context: DrafterContext) -> SuffixDrafter:
    """Build the drafter."""
    return SuffixDrafter(options, context.stores)


METHOD = Method(
    kind="drafter",
    name="suffix",
    summary="What most often followed the text's suffixes, in it and in the namespace's outputs.",
    source="SuffixDecoding, arXiv:2411.04975",
    target="plait.decoders.speculative.drafters.suffix:make",
    options=SuffixOptions,
    presets={
        "vllm": {"depth": 24, "max_draft": 24},
        "arctic": {"depth": 64, "max_draft": 64},
    },
    replays=True,
)
