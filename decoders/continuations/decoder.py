"""Scores given continuations of a prompt, all in one forward pass; writes no text.

The continuations are fed as a tree behind the prompt: equal beginnings are one row, and the last
token of a continuation, behind which nothing is read, is none. A row's logits give the
log-probabilities of the tokens that follow it, and a continuation's is the sum along its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from plait.decoders.contract.decoder import (
    AttentionMode,
    ContinuationScores,
    DecodeRequest,
    DraftBudget,
    Forward,
    Outcome,
    Proposal,
    SequenceError,
)
from plait.decoders.contract.isolation import attempt, faulty
from plait.decoders.contract.text import Text

ROOT = -1  # the end of the prompt


@dataclass(frozen=True, slots=True)
class ContinuationTree:
    """Continuations as a tree of tokens; a node is a row that is fed.

    Nodes are numbered so that a parent comes before its children.
    """

    token_ids: Sequence[int]  # [nodes]
    parents: Sequence[int]  # [nodes] index of a node, or ROOT
    paths: Sequence[Sequence[tuple[int, int]]]  # [continuations] (node, token that follows it)

    @property
    def proposal(self) -> Proposal:
        """The rows that are fed behind the prompt."""
        if not self.token_ids:
            return Proposal()
        return Proposal(self.token_ids, AttentionMode.TREE, self.parents)


@dataclass(frozen=True, slots=True)
class ContinuationState:
    """What is to be told of a prompt."""

    request: DecodeRequest
    tree: ContinuationTree = field(repr=False)


class ContinuationDecoder:
    """Tells how probable a model finds texts that others wrote (teacher forcing).

    Law: the score of a continuation is the sum of the log-probabilities of its tokens, each given
    the prompt and the tokens before it, whatever else is in the batch. Cost: one forward pass over
    the uncomputed rows of the prompt and the nodes of the tree.
    """

    name: ClassVar[str] = "continuations"

    def start(self, request: DecodeRequest) -> ContinuationState:
        """Return the state of one prompt."""
        return ContinuationState(request, continuation_tree(request.extras.continuations))

    def fork(self, state: ContinuationState, text: Text) -> ContinuationState:
        """Return the state for another text; the continuations are the same."""
        return ContinuationState(state.request, state.tree)

    def truncate(self, state: ContinuationState, text: Text) -> ContinuationState:
        """Return the state: nothing depends on the text."""
        return state

    def reweigh(self, state: ContinuationState, log_factors: Mapping[int, float]) -> None:
        """Refuse: there is no draw."""
        raise SequenceError("continuations are scored, not drawn")

    def attention_block_size(self, state: ContinuationState) -> int:
        """Read text causally."""
        return 1

    def propose(
        self, states: Sequence[ContinuationState], budget: DraftBudget
    ) -> Sequence[Proposal]:
        """Propose the trees, whole: they are what the request asks for."""
        return [state.tree.proposal for state in states]

    def accept(self, states: Sequence[ContinuationState], forward: Forward) -> Sequence[Outcome]:
        """Return the scores; keep and emit nothing. A sequence that can't be scored fails alone."""
        made = [attempt(partial(_outcome, state, forward, i)) for i, state in enumerate(states)]
        return [faulty(each) if isinstance(each, Exception) else each for each in made]

    def preempted(self, state: ContinuationState) -> None:
        """Nothing depends on the cache."""

    def finish(self, state: ContinuationState) -> None:
        """Release nothing."""

    def report(self, state: ContinuationState) -> Mapping[str, Any]:
        """Return nothing: there is no text to tell of."""
        return {}


def continuation_tree(continuations: Sequence[Sequence[int]]) -> ContinuationTree:
    """Return the tree of some continuations, each of at least one token."""
    token_ids, parents = list[int](), list[int]()
    nodes: dict[tuple[int, int], int] = {}  # (parent, token)
    paths: list[list[tuple[int, int]]] = []
    for continuation in continuations:
        at, path = ROOT, list[tuple[int, int]]()
        for token_id in continuation[:-1]:
            path.append((at, token_id))
            if (at, token_id) not in nodes:
                nodes[at, token_id] = len(token_ids)
                token_ids.append(token_id)
                parents.append(at)
            at = nodes[at, token_id]
        paths.append([*path, (at, continuation[-1])])
    return ContinuationTree(token_ids, parents, paths)


def _outcome(state: ContinuationState, forward: Forward, i: int) -> Outcome:
    first = forward.offsets[i]  # the row of the root; that of node n is first + 1 + n
    logprobs = _logprobs(state.tree, forward.logits, first)
    scores = [sum(logprobs[step] for step in path) for path in state.tree.paths]
    hidden = b""
    if state.request.extras.wants_hidden and forward.hidden is not None:
        hidden = forward.hidden[first].float().cpu().numpy().astype("<f4").tobytes()
    return Outcome(finish="stop", scores=ContinuationScores(scores, hidden))


def _logprobs(
    tree: ContinuationTree, logits: Tensor, first: int
) -> Mapping[tuple[int, int], float]:
    """Return the log-probability of each (node, token) on a path.

    Each row by itself and in float64, so that a score depends on nothing else in the batch.
    """
    followers: dict[int, list[int]] = {}
    for node, token_id in dict.fromkeys(step for path in tree.paths for step in path):
        followers.setdefault(node, []).append(token_id)
    found: dict[tuple[int, int], float] = {}
    for node, token_ids in followers.items():
        row = logits[first + 1 + node].double()
        values = (row[token_ids] - row.logsumexp(0)).tolist()
        found |= {(node, token): value for token, value in zip(token_ids, values, strict=True)}
    return found
