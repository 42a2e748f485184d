"""Suffix: what most often followed the longest endings of the text, here and in earlier answers.

Each sequence has an index of its own text, each namespace one of the texts that requests have left
there. Every ending of the text that occurs in one is a candidate: of m tokens, it may be followed
for factor * m + offset tokens, each time to the token that came most often, as long as the product
of the tokens' shares stays above a cut. The sum of these products is the candidate's score, and the
best one is the draft; of equals the longest ending's, the text's own before the namespace's. As a
tree, the tokens of the largest products are drafted instead, whatever they follow.

Law: none of its own; verified as every draft. Cost: O(depth) a token of the text at worst, three to
six links of an automaton most often; the draft as much for each link.
Source: Oliaro et al. 2024, SuffixDecoding, arXiv:2411.04975; ArcticInference and vLLM's method
suffix, whose defaults are the preset `vllm`. Departs from them where a chance is told: of a run's
places, the end of the text itself is left out, since nothing has followed there yet; and where the
namespace forgets, by halves of what it keeps instead of request by request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
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

WINDOW = 2**14  # tokens that stay indexed when a longer text is indexed anew


class SuffixOptions(StoreOptions):
    """How far endings are followed."""

    max_draft: int = Field(32, ge=1, le=64, description="Tokens of one draft, at most.")
    depth: int = Field(
        MAX_DEPTH, ge=2, le=MAX_DEPTH, description="Tokens of an ending and its draft, at most."
    )
    factor: float = Field(1.0, ge=0, le=64, description="Draft tokens per token of the ending.")
    offset: float = Field(0.0, ge=-64, le=64, description="Draft tokens beyond that.")
    cut: float = Field(0.1, ge=0, le=1, description="Product of shares below which a draft ends.")
    tree: bool = Field(False, description="Draft the tokens of the largest products.")


@dataclass(slots=True)
class SuffixCursor:
    """The longest ending of a text that occurs in an automaton of earlier texts."""

    automaton: SuffixAutomaton
    num_tokens: int = NONE  # of the automaton, when the ending was looked for
    read: int = 0  # tokens of the text
    state: int = ROOT
    matched: int = 0

    def advance(self, text: Sequence[int]) -> None:
        """Read the text to its end; look anew if the automaton has learnt meanwhile."""
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
    """What is known of one sequence."""

    namespace: str
    share: (
        PromptCacheEntry[SuffixAutomaton] | None
    )  # of the prompt's, until the first draft is asked for
    automaton: SuffixAutomaton = field(default_factory=lambda: SuffixAutomaton(MAX_DEPTH))
    read: int = 0  # tokens of the text that its own automaton has
    cursors: list[SuffixCursor] = field(default_factory=list)


@dataclass(slots=True)
class SuffixCandidate:
    """A candidate."""

    token_ids: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    parents: list[int] | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class SuffixMatch:
    """Endings of a text, all suffixes of one, that occur in an automaton."""

    automaton: SuffixAutomaton
    state: int
    matched: int
    is_end: bool  # one of its places is the end of the text that the automaton has


class SuffixDrafter:
    """Follows each text's endings through itself and through the namespace's earlier texts."""

    name: ClassVar[str] = "suffix"

    def __init__(self, options: SuffixOptions, stores: DraftStores) -> None:
        self._options = options
        self._stores = stores
        self._prompt_cache = PromptCache(_indexed, SuffixAutomaton.copy)

    def start(self, request: DecodeRequest) -> SuffixState:
        """Index nothing yet: the prompt is read when the first draft is asked for."""
        return SuffixState(request.namespace, self._prompt_cache.join(request.prompt_token_ids))

    def propose(self, requests: Sequence[DraftRequest[SuffixState]]) -> Sequence[Draft]:
        """Return the best candidates."""
        return [self._draft(request) for request in requests]

    def commit(self, state: SuffixState, text: Sequence[int], result: VerificationResult) -> None:
        """Learn when the next draft is asked for."""

    def finish(self, state: SuffixState, text: Sequence[int]) -> None:
        """Leave it to the speculator to keep the output."""
        if state.share is not None:
            self._prompt_cache.leave(state.share)

    def _draft(self, request: DraftRequest[SuffixState]) -> Draft:
        best, own = SuffixCandidate(), request.state
        if own.share is not None:
            own.read = len(own.share.prompt)
            own.automaton = self._prompt_cache.take(own.share)
            own.share = None
        endings = [_own_ending(request)]
        space = self._stores.find(own.namespace)
        if space is not None:
            index = space.index("suffix", suffix_index)
            endings += _earlier_endings(request, index.automata)
        for ending in endings:
            best = self._best(ending, request.max_tokens, best)
        return Draft(best.token_ids, best.acceptance_probs, best.parents)

    def _best(self, ending: SuffixMatch, max_tokens: int, best: SuffixCandidate) -> SuffixCandidate:
        """Return the best candidate of an ending and its suffixes, if it beats another."""
        automaton, options = ending.automaton, self._options
        state, matched = ending.state, min(ending.matched, options.depth)
        while state != ROOT:
            most = min(int(options.factor * matched + options.offset), max_tokens)
            if most <= best.score:  # no token adds more than 1, nor have shorter endings more room
                break
            shorter = automaton.link[state]
            length = automaton.length[shorter]
            if length < matched:
                if most > options.depth - matched:
                    most = min(max_tokens, self._room(length + 1, matched))
                if most > best.score:
                    found = self._follow(ending, state, matched, most)
                    best = found if found.score > best.score else best
                matched = length
            state = shorter
        return best

    def _room(self, shortest: int, longest: int) -> int:
        """Return the most tokens that may follow an ending of these many tokens, all the same.

        The longer the ending, the more by the factor, and the fewer by the depth.
        """
        options = self._options
        crossing = int((options.depth - options.offset) / (options.factor + 1))
        lengths = (min(max(crossing + i, shortest), longest) for i in (0, 1))
        return max(
            min(int(options.factor * length + options.offset), options.depth - length)
            for length in (longest, *lengths)
        )

    def _follow(self, ending: SuffixMatch, state: int, matched: int, room: int) -> SuffixCandidate:
        if self._options.tree:
            return self._tree(ending, state, matched, room)
        automaton, cut = ending.automaton, self._options.cut
        following, count, best = automaton.next, automaton.count, automaton.best
        path, product, places = SuffixCandidate(), 1.0, count[state] - ending.is_end
        while len(path.token_ids) < room and (token := best[state]) != NONE:
            child = following[state][token]
            product *= count[child] / count[state]
            if product < cut:
                break
            path.score += product
            path.token_ids.append(token)
            path.acceptance_probs.append(match_prob(matched, count[child], count[child] / places))
            state, matched, places = child, matched + 1, count[child]
        return path

    def _tree(self, ending: SuffixMatch, state: int, matched: int, room: int) -> SuffixCandidate:
        automaton = ending.automaton
        count, cut = automaton.count, self._options.cut
        path = SuffixCandidate(parents=[])
        nodes: list[tuple[float, int, int, int, int, float]] = []
        order = 0

        def offer(state: int, node: int, product: float, places: int, matched: int) -> None:
            nonlocal order
            for token, child in automaton.next[state].items():
                share = product * count[child] / count[state]
                if share >= cut:
                    told = match_prob(matched, count[child], count[child] / places)
                    heappush(nodes, (-share, order, child, token, node, told))
                    order += 1

        offer(state, NONE, 1.0, max(count[state] - ending.is_end, 1), matched)
        while nodes and len(path.token_ids) < room:
            product, _, child, token, parent, told = heappop(nodes)
            path.score -= product
            path.token_ids.append(token)
            path.acceptance_probs.append(told)
            assert path.parents is not None
            path.parents.append(parent)
            node = len(path.token_ids) - 1
            offer(child, node, -product, count[child], matched + 1)
        return path


def _own_ending(request: DraftRequest[SuffixState]) -> SuffixMatch:
    """Return the whole text's ending in the index of the text itself."""
    own, text = request.state, request.text
    if len(text) - own.read + own.automaton.num_tokens > 2 * WINDOW:
        own.automaton = SuffixAutomaton(MAX_DEPTH)
        own.read = len(text) - WINDOW
    own.automaton.extend(text[own.read :])
    own.read = len(text)
    automaton = own.automaton
    state = automaton.counted(automaton.last)
    matched = min(automaton.length[automaton.last], MAX_DEPTH)
    for token in request.draft_prefix:
        state, matched = automaton.follow(state, matched, token)
    return SuffixMatch(automaton, state, matched, not request.draft_prefix)


def _earlier_endings(
    request: DraftRequest[SuffixState], automata: Sequence[SuffixAutomaton]
) -> list[SuffixMatch]:
    """Return the longest endings that occur in earlier texts; remember how far they were found."""
    own = request.state
    if [cursor.automaton for cursor in own.cursors] != automata:
        own.cursors = [SuffixCursor(each) for each in automata]
    endings = []
    for cursor in own.cursors:
        cursor.advance(request.text)
        state, matched = cursor.state, cursor.matched
        for token in request.draft_prefix:
            state, matched = cursor.automaton.follow(state, matched, token)
        endings.append(SuffixMatch(cursor.automaton, state, matched, False))
    return endings


def _indexed(text: Sequence[int]) -> SuffixAutomaton:
    """Return the index of a text, or of its end if it is long."""
    automaton = SuffixAutomaton(MAX_DEPTH)
    automaton.extend(text if len(text) <= 2 * WINDOW else text[-WINDOW:])
    return automaton


def make(options: SuffixOptions, *, context: DrafterContext) -> SuffixDrafter:
    """Build the drafter."""
    return SuffixDrafter(options, context.stores)


METHOD = Method(
    kind="drafter",
    name="suffix",
    summary="What most often followed the text's endings, in it and in the namespace's answers.",
    source="SuffixDecoding, arXiv:2411.04975",
    target="plait.decoders.speculative.drafters.suffix:make",
    options=SuffixOptions,
    presets={
        "vllm": {"depth": 24, "max_draft": 24},
        "arctic": {"depth": 64, "max_draft": 64},
    },
    replays=True,
)
