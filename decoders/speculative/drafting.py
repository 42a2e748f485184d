"""The draft of one sequence while its drafters extend it in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import PredictionResult
from plait.decoders.contract.drafter import Draft, Drafter
from plait.decoders.contract.text import Text
from plait.decoders.speculative.config import PREDICTED
from plait.decoders.speculative.draft_budget import AcceptanceEstimates, SequenceAcceptance
from plait.decoders.speculative.drafter_stats import SequenceDrafterStats
from plait.decoders.speculative.lossy.acceptance_rule import AcceptanceRule
from plait.decoders.speculative.tree import ROOT, DraftTree, is_chain, parents_of


@dataclass(slots=True)
class DrafterBinding:
    """One drafter of one sequence."""

    drafter: Drafter[Any]
    state: Any
    max_draft: int
    stats: SequenceDrafterStats
    is_called: bool = True  # in this step


@dataclass(slots=True)
class SpeculationState:
    """What the speculator remembers of one sequence."""

    bindings: list[DrafterBinding]
    text: Text  # the engine's
    constraint: Constraint | None
    stop_token_ids: frozenset[int]
    always: bool
    learns_in: str | None = None  # namespace whose later sequences learn from this one's output
    rule: AcceptanceRule | None = None  # the lossy acceptance rule that the request names
    acceptance: SequenceAcceptance = field(default_factory=SequenceAcceptance)
    tree: DraftTree = field(default_factory=DraftTree)  # the draft that this step feeds
    row_cost: float = 0.0  # of each row of the tree, in tokens
    drafted: dict[str, int] = field(default_factory=dict)  # draft tokens fed so far, by drafter
    accepted: dict[str, int] = field(default_factory=dict)

    def match_fed(self, token_ids: Sequence[int]) -> int:
        """Return how many of the tokens that were fed as a chain are those of the draft.

        For an engine that feeds only a part of what is proposed, or fills up with other tokens: the
        rest of the draft is forgotten, and the rows of these tokens alone are to be accepted.
        """
        chain = self.tree.token_ids if self.tree.is_chain else ()
        pairs = zip(chain, token_ids, strict=False)
        count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if count < len(self.tree):
            self.tree = self.tree.only(range(count))
        return count


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What became of the draft of one sequence and step."""

    drafted: Mapping[str, int]  # tokens fed, by drafter
    accepted: Mapping[str, int]
    predicted: PredictionResult | None = None  # of the tokens drafted from a prediction


def count_draft(tree: DraftTree, accepted_rows: Sequence[int]) -> DraftCounts:
    """Return what became of a draft, of which some rows were accepted."""
    nodes = [row - 1 for row in accepted_rows if row > 0]
    drafted = tree.count()
    predicted: PredictionResult | None = None
    if PREDICTED in drafted:
        places = [i for i, node in enumerate(nodes) if tree.sources[node] == PREDICTED]
        num_rejected = drafted[PREDICTED] - len(places)
        rejected = [(len(nodes), num_rejected)] if num_rejected else []
        predicted = PredictionResult(places, rejected)
    return DraftCounts(drafted, tree.count(nodes), predicted)


@dataclass(slots=True)
class DraftInProgress:
    """A draft that grows at the end of its chain.

    A tree, inputs beyond the vocabulary, or a token that ends the text end the growth.
    """

    state: SpeculationState
    max_tokens: int
    vocab_size: int
    num_ids: int  # inputs beyond the vocabulary have ids below it
    estimates: AcceptanceEstimates
    constraint: Constraint | None = None  # a fork of the sequence's, advanced over the chain
    tree: DraftTree = field(default_factory=DraftTree)
    chain: list[int] = field(default_factory=list)  # tokens
    tip: int = ROOT  # last node of the chain
    can_extend: bool = True

    def extend(self, source: str, draft: Draft) -> None:
        """Add a draft at the end of the chain, up to the first token that can't follow."""
        has_inputs = any(token >= self.vocab_size for token in draft.token_ids)
        if has_inputs or not is_chain(parents_of(draft)):
            self._add_tree(source, draft)
            return
        stops = self.state.stop_token_ids
        for token, stated_prob in zip(draft.token_ids, draft.acceptance_probs, strict=True):
            if not 0 <= token < self.vocab_size or token in stops:
                self.can_extend = token not in stops and self.can_extend
                return
            if self.constraint is not None and not self.constraint.accept_token(token):
                return
            prob = self.estimates.acceptance_prob(source, stated_prob, self.state.acceptance)
            self.tip = self.tree.add(self.tip, token, source, prob, stated_prob)
            self.chain.append(token)
        self.can_extend &= draft.can_extend

    def _add_tree(self, source: str, draft: Draft) -> None:
        """Add a tree at the end of the chain; no other drafter extends it."""
        self.can_extend = False
        nodes: list[int | None] = []  # of the draft's tokens; None: left out
        entries = zip(draft.token_ids, parents_of(draft), draft.acceptance_probs, strict=True)
        for token, parent, stated_prob in entries:
            above = nodes[parent] if parent >= 0 else self.tip
            is_known = 0 <= token < self.num_ids and token not in self.state.stop_token_ids
            if above is None or not is_known:
                nodes.append(None)
                continue
            prob = stated_prob  # inputs beyond the vocabulary are never sampled: nothing is learnt
            if token < self.vocab_size:
                prob = self.estimates.acceptance_prob(source, stated_prob, self.state.acceptance)
            nodes.append(self.tree.add(above, token, source, prob, stated_prob))


def drafters_in_order(drafts: Sequence[DraftInProgress]) -> list[Drafter[Any]]:
    """Return the drafters in use, in the order in which the sequences name them."""
    found: dict[int, Drafter[Any]] = {}
    for draft in drafts:
        for binding in draft.state.bindings:
            found.setdefault(id(binding.drafter), binding.drafter)
    return list(found.values())
