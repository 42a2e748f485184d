"""ADED: a tree of what tends to follow pairs of tokens, learnt from corpora and from recent use.

Each namespace has a store of tri-grams. At every step those of the latest tokens gain weight; what
is imported into the namespace is the corpus, and there is none to begin with. The draft is the tree
of the nodes of the greatest survival, of which a token's chance is weight / (sum of weights + 0.5);
or, as the preset `paper`, what Monte-Carlo search visits most.

Law: none of its own; verified as every draft. What is drafted depends on what the namespace has
seen before, what is emitted never does. Cost: O(window) a step to adapt, and one lookup a node to
draft; the search of the paper about a hundred times as much.
Source: ADED, arXiv:2407.12021. Departs from the paper where it says so: the store is a tenant's
own and bounded (stores/trigrams.py), the search is best first unless the preset is asked for, and
without the preset a prompt is read as if it had been written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
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
PRIVATE_PAIRS = 2**12  # pairs of a sequence that keeps to itself


class AdedOptions(StoreOptions):
    """How the store adapts, and how the tree is found."""

    window: int = Field(16, ge=3, le=64, description="Latest tokens whose tri-grams gain weight.")
    step: float = Field(0.04, ge=0, le=3, description="Weight that each gains in a step.")
    cap: float = Field(3.0, gt=0, le=100, description="Weight beyond which none grows.")
    prompt: bool = Field(True, description="Read the prompt as if it had been written here.")
    search: Literal["best-first", "monte-carlo"] = "best-first"
    depth: int = Field(8, ge=1, le=16, description="Tokens of a path, at most.")
    iterations: int = Field(150, ge=1, le=1000, description="Of the Monte-Carlo search.")
    explore: float = Field(32.0, ge=0, le=1000, description="Its constant c1.")
    base: float = Field(8.0, gt=0, le=1000, description="Its constant c2.")
    prefixes: int = Field(24, ge=1, le=64, description="Paths that it drafts, at most.")


@dataclass(slots=True)
class AdedState:
    """What is known of one sequence."""

    namespace: str | None  # None: the sequence keeps to itself
    own: TriGrams
    is_read: bool  # the prompt is, by the sequence or by a sibling


class AdedDrafter:
    """Looks the last two tokens up, and the pairs that may follow them."""

    name: ClassVar[str] = "aded"

    def __init__(self, options: AdedOptions, stores: DraftStores) -> None:
        self._options = options
        self._stores = stores
        self._latest: Sequence[int] = ()  # prompt; the sequences of a request have the same one
        self._climb = MctsConfig(
            options.iterations, options.explore, options.base, options.prefixes
        )

    def start(self, request: DecodeRequest) -> AdedState:
        """Read nothing yet: the prompt is read when the first draft is asked for."""
        shares = self._options.learn and self._stores.max_tokens > 0
        is_read = shares and request.prompt_token_ids is self._latest
        self._latest = request.prompt_token_ids
        return AdedState(request.namespace if shares else None, TriGrams(PRIVATE_PAIRS), is_read)

    def propose(self, requests: Sequence[DraftRequest[AdedState]]) -> Sequence[Draft]:
        """Return the trees."""
        return [self._draft(request) for request in requests]

    def commit(self, state: AdedState, text: Sequence[int], result: VerificationResult) -> None:
        """Adapt to the latest tokens."""
        options = self._options
        window = text[-options.window :]
        self._store(state).adapt(window, options.step, options.cap)

    def finish(self, state: AdedState, text: Sequence[int]) -> None:
        """Leave it to the speculator to keep the output."""

    def _draft(self, request: DraftRequest[AdedState]) -> Draft:
        options, store = self._options, self._store(request.state)
        if not request.state.is_read:
            request.state.is_read = True
            if options.prompt:
                store.catch_up(request.text, options.window, options.step, options.cap)
        tail = [*request.text[-2:], *request.draft_prefix][-2:]
        if len(tail) < 2:
            return Draft()
        pair = tail[0], tail[1]
        bounds = TreeLimits(request.max_tokens, options.depth)
        if options.search == "best-first":
            return best_first(store.successors, pair, bounds, SMOOTHING)
        random = Random(len(request.text))  # the same for the same request
        paths = monte_carlo(store.successors, pair, bounds, self._climb, random)
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
    summary="A tree of what tends to follow pairs of tokens, in corpora and lately.",
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
