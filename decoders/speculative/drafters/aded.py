"""ADED: a tree of tokens that often follow pairs of tokens, in corpora and in recent outputs.

Each namespace has a store of trigrams. At every step the trigrams of the latest tokens gain weight;
texts that are imported into the namespace are the corpus, which is empty at first. A token's
acceptance probability is weight / (sum of weights + 0.5). The draft is the tree with the highest
path probabilities or, with the preset `paper`, the paths that Monte-Carlo tree search visits most.

Law: none of its own; every draft is verified. Drafts depend on earlier texts of the namespace,
outputs never do. Cost: O(window) a step to adapt, and one lookup a node to draft; about a hundred
times as much with the paper's search.
Source: ADED, arXiv:2407.12021. Differs from the paper: stores are bounded and separate for each
namespace (stores/trigrams.py), the search is best-first, and the prompt is read as if it had been
generated; the preset `paper` restores the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import StoreOptions
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.decoders.speculative.stores.trigrams import TriGrams
from plait.decoders.speculative.tree_search import (
    MctsConfig,
    TreeLimits,
    best_first,
    monte_carlo,
    paths_to_draft,
)

SMOOTHING = 0.5
PRIVATE_PAIRS = 2**12  # of a sequence that shares nothing


class AdedOptions(StoreOptions):
    """How the store adapts, and how the tree is built."""

    window: int = Field(16, ge=3, le=64, description="Latest tokens whose trigrams gain weight.")
    step: float = Field(0.04, ge=0, le=3, description="Weight that each gains in a step.")
    cap: float = Field(3.0, gt=0, le=100, description="Largest weight that adaptation gives.")
    prompt: bool = Field(True, description="Read the prompt as if it had been generated.")
    search: Literal["best-first", "monte-carlo"] = "best-first"
    depth: int = Field(8, ge=1, le=16, description="Most tokens of a path.")
    iterations: int = Field(150, ge=1, le=1000, description="Of the Monte-Carlo tree search.")
    explore: float = Field(32.0, ge=0, le=1000, description="Its constant c1.")
    base: float = Field(8.0, gt=0, le=1000, description="Its constant c2.")
    prefixes: int = Field(24, ge=1, le=64, description="Most paths that it drafts.")


@dataclass(slots=True)
class AdedState:
    """State of one sequence: which store it uses, and whether its prompt was read."""

    namespace: str | None  # whose store is shared; None: the sequence uses its own
    own: TriGrams
    is_read: bool  # the prompt was read, by this or another sequence of the request


class AdedDrafter(Drafter[AdedState]):
    """Looks up the last two tokens and, from there, the pairs that may follow."""

    name: ClassVar[str] = "aded"

    def __init__(self, options: AdedOptions, stores: DraftStores) -> None:
        self._options = options
        self._stores = stores
        self._latest: Sequence[int] = ()  # prompt; the sequences of a request share the object
        self._mcts = MctsConfig(options.iterations, options.explore, options.base, options.prefixes)

    def start(self, request: DecodeRequest) -> AdedState:
        """Return the state; the prompt is read at the first draft."""
        shares = self._options.learn and self._stores.max_tokens > 0
        is_read = shares and request.text.prompt is self._latest
        self._latest = request.text.prompt
        return AdedState(request.namespace if shares else None, TriGrams(PRIVATE_PAIRS), is_read)

    def fork(self, state: AdedState, request: DecodeRequest) -> AdedState:
        """Share the namespace's store; a sequence's own store is built again from the text."""
        return self.start(request) if state.namespace is None else replace(state)

    def truncate(self, state: AdedState, request: DecodeRequest) -> AdedState:
        """Leave the namespace's store as it is; build a sequence's own store again."""
        return self.start(request) if state.namespace is None else state

    def propose(self, requests: Sequence[DraftRequest[AdedState]]) -> Sequence[Draft]:
        """Return the draft trees."""
        return [self._draft(request) for request in requests]

    def observe(self, state: AdedState, text: Sequence[int], result: VerificationResult) -> None:
        """Adapt to the latest tokens."""
        options = self._options
        window = text[-options.window :]
        self._store(state).adapt(window, options.step, options.cap)

    def finish(self, state: AdedState, text: Sequence[int]) -> None:
        """Do nothing: the speculator adds the output to the store."""

    def _draft(self, request: DraftRequest[AdedState]) -> Draft:
        options, store = self._options, self._store(request.state)
        if not request.state.is_read:
            request.state.is_read = True
            if options.prompt:
                store.adapt_to_text(request.text, options.window, options.step, options.cap)
        last = [*request.text[-2:], *request.draft_prefix][-2:]
        if len(last) < 2:
            return Draft()
        pair = last[0], last[1]
        bounds = TreeLimits(request.max_tokens, options.depth)
        if options.search == "best-first":
            return best_first(store.successors, pair, bounds, SMOOTHING)
        random = Random(len(request.text))  # reproducible
        paths = monte_carlo(store.successors, pair, bounds, self._mcts, random)
        return paths_to_draft(store.successors, pair, paths, SMOOTHING)

    def _store(self, state: AdedState) -> TriGrams:
        """Return the namespace's store, or the sequence's own."""
        space = None if state.namespace is None else self._stores.open(state.namespace)
        return state.own if space is None else space.index("tri-grams", TriGrams)


def make(options: AdedOptions, *, context: DrafterContext) -> AdedDrafter:
    """Build the drafter."""
    return AdedDrafter(options, context.stores)


METHOD = Method(
    kind="drafter",
    name="aded",
    summary="A tree of tokens that often follow pairs of tokens, in corpora and recent outputs.",
    source="ADED, arXiv:2407.12021",
    target="plait.decoders.speculative.drafters.aded:make",
    options=AdedOptions,
    needs=frozenset({"tree"}),
    presets={
        "paper": {
            "search": "monte-carlo",
            "depth": 4,
            "max_draft": 64,
            "prompt": False,
        }
    },
    replays=True,
)
