"""The draft of one sequence: a tree of tokens, most often a chain.

Nodes are numbered so that a parent comes before its children; parent -1 is the end of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plait.decoders.contract.decoder import AttentionMode, Proposal
from plait.decoders.contract.drafter import Draft

ROOT = -1


class MalformedDraft(ValueError):
    """A drafter returned something that is no tree; the draft is dropped."""


@dataclass(slots=True)
class DraftTree:
    """Nodes of one draft; no node has two children with the same token."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)  # estimated, given the parent
    stated_probs: list[float] = field(default_factory=list)  # the same as the drafter stated it
    sources: list[str] = field(default_factory=list)  # names of the drafters
    _child: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return is_chain(self.parents)

    def add(
        self, parent: int, token: int, source: str, acceptance_prob: float, stated_prob: float
    ) -> int:
        """Return the child of a node that has this token; it is added if there is none."""
        known = self._child.get((parent, token))
        if known is not None:
            return known
        node = len(self.token_ids)
        self._child[parent, token] = node
        self.token_ids.append(token)
        self.parents.append(parent)
        self.acceptance_probs.append(acceptance_prob)
        self.stated_probs.append(stated_prob)
        self.sources.append(source)
        return node

    def child(self, parent: int, token: int) -> int | None:
        """Return the child of a node that has this token, if there is one."""
        return self._child.get((parent, token))

    def path_probs(self) -> list[float]:
        """Return for each node the probability that it and all its ancestors are accepted."""
        found: list[float] = []
        for parent, acceptance_prob in zip(self.parents, self.acceptance_probs, strict=True):
            found.append(acceptance_prob * (found[parent] if parent >= 0 else 1.0))
        return found

    def only(self, nodes: Sequence[int]) -> DraftTree:
        """Return the tree of some nodes, in rising order, which include their own parents."""
        kept = DraftTree()
        renumbered = {ROOT: ROOT}
        for node in nodes:
            parent = renumbered[self.parents[node]]
            token, source = self.token_ids[node], self.sources[node]
            renumbered[node] = kept.add(
                parent, token, source, self.acceptance_probs[node], self.stated_probs[node]
            )
        return kept

    def proposal(self) -> Proposal:
        """Return the rows to feed."""
        if self.is_chain:
            return Proposal(self.token_ids)
        return Proposal(self.token_ids, AttentionMode.TREE, self.parents)

    def count(self, nodes: Sequence[int] | None = None) -> Mapping[str, int]:
        """Return the number of nodes, of all or of some, by drafter."""
        counts: dict[str, int] = {}
        for node in range(len(self)) if nodes is None else nodes:
            counts[self.sources[node]] = counts.get(self.sources[node], 0) + 1
        return counts


def is_chain(parents: Sequence[int]) -> bool:
    """Tell whether every node follows the one before it."""
    return all(parent == i - 1 for i, parent in enumerate(parents))


def parents_of(draft: Draft) -> Sequence[int]:
    """Return the parents of a draft's tokens."""
    return range(-1, len(draft.token_ids) - 1) if draft.parents is None else draft.parents


def validate_draft(draft: Draft, max_tokens: int) -> Draft:
    """Return the first `max_tokens` tokens of a draft, probabilities clipped to [0, 1], NaN to 0.

    Raises:
        MalformedDraft: its parts differ in length, or a parent does not come before its child.
    """
    size, parents = len(draft.token_ids), parents_of(draft)
    if not len(draft.acceptance_probs) == len(parents) == size:
        raise MalformedDraft(
            f"{size} tokens have {len(draft.acceptance_probs)} probabilities and "
            f"{len(parents)} parents"
        )
    stray = next((i for i, parent in enumerate(parents) if not ROOT <= parent < i), None)
    if stray is not None:
        raise MalformedDraft(f"token {stray} has parent {parents[stray]}")
    probs = [min(max(0.0, prob), 1.0) for prob in draft.acceptance_probs[:max_tokens]]
    return Draft(draft.token_ids[:max_tokens], probs, parents[:max_tokens], draft.can_extend)
