"""a-star: best-first search over steps of a text, guided by scorers.

A state is a text that ends behind a step; a step ends behind a delimiter, at the end of the text,
or after max_step_tokens tokens. A state's children are num_continuations samples of the next step,
equal ones once. With r, the sum of the request's weighted scorers, from 0 to 1,

    h(s) = 1 - r(s)        f(s) = g(s) + h(s)        g(child) = g(parent) + cost(parent, child)

and the open state with the lowest f is expanded next, of equals the deeper, then the older one. The
first complete state that is popped is the answer; the first n are the n answers. The cost is

    increase    max(0, h(child) - h(parent)): a path pays for every loss of quality
    decrease    max(0, h(parent) - h(child)): the least cost with which h is consistent

which are two readings of summaries of the paper; its own text was not at hand.

Budgets: expansions, scores, tokens, milliseconds. Each ends the search with the complete text of
the lowest f. If no text is complete, the open one with the lowest f is sampled to its end after the
first two, and returned as it is after the last two.

Laws: the order of expansion is that of A* on the same tree; num_continuations 1 is plain sampling,
token for token; the same request and seed give the same text. Open states wait without KV blocks.

Source: A*-decoding, arXiv:2505.13672. One state is expanded at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from plait.decoders.contract.decoder import FinishReason, SearchNeeds
from plait.decoders.contract.registry import Method, Options
from plait.decoders.contract.search import (
    Action,
    Drop,
    Finish,
    Fork,
    Hold,
    MemberOutcome,
    Park,
    Ranked,
    Resume,
    Score,
    SearchRequest,
)

MAX_STATES = 2048

Cost = Literal["increase", "decrease"]
Delimiter = Annotated[str, StringConstraints(min_length=1, max_length=32)]
OptionalCount = Annotated[int, Field(ge=1, le=2**31 - 1)] | None


class AStarOptions(Options):
    """Options of a-star."""

    num_continuations: int = Field(default=4, ge=1, le=32, description="children of a state")
    delimiters: tuple[Delimiter, ...] = Field(
        default=("\n\n",), max_length=16, description="texts behind which a step ends"
    )
    max_step_tokens: int = Field(default=256, ge=1, le=2**20, description="of one step")
    cost: Cost = Field(default="increase", description="what a step adds to g")
    max_expansions: int = Field(default=64, ge=1, le=1024, description="budget of expanded states")
    max_scores: OptionalCount = Field(default=None, description="budget of scored texts")
    max_total_tokens: OptionalCount = Field(default=None, description="budget of drawn tokens")
    max_ms: OptionalCount = Field(default=None, description="budget of milliseconds")

    @model_validator(mode="after")
    def _bounded(self) -> AStarOptions:
        if self.num_continuations * self.max_expansions > MAX_STATES:
            raise ValueError(f"num_continuations x max_expansions may be at most {MAX_STATES}")
        return self


@dataclass(frozen=True, slots=True)
class Node:
    """A state: a member that waits behind a step, or is complete."""

    member: int
    num_output: int
    depth: int  # steps
    g: float
    h: float
    is_complete: bool
    order: int  # of its making

    @property
    def f(self) -> float:
        """What the next state to be expanded has the lowest of."""
        return self.g + self.h

    @property
    def key(self) -> tuple[float, int, int]:
        """The order of the open states: lowest f, then the deeper, then the older one."""
        return self.f, -self.depth, self.order


@dataclass(slots=True)
class Child:
    """A member on its next step."""

    member: int
    num_output: int
    tokens: list[int] = field(default_factory=list)  # of the step
    text: bytes = b""  # of the step
    finish: FinishReason | None = None
    is_ready: bool = False  # the step has ended
    r: float | None = None  # its score


@dataclass(slots=True)
class AStarState:
    """The frontier of one request."""

    n: int
    parent: Node  # whose children are sampled
    children: list[Child]
    root_r: float | None = None
    are_asked: bool = False  # whether the children's scores are on their way
    open: list[tuple[tuple[float, int, int], Node]] = field(default_factory=list)  # a heap
    goals: list[Node] = field(default_factory=list)  # complete states in the order of popping
    num_members: int = 1
    num_nodes: int = 0  # opened
    num_expansions: int = 0
    num_scores: int = 0
    budget: str = ""  # that is spent


class AStar:
    """Best-first search over steps; see the module's docstring."""

    name: ClassVar[str] = "a-star"

    def __init__(self, options: AStarOptions) -> None:
        self._options = options
        self._delimiters = [each.encode() for each in options.delimiters]
        self.needs = SearchNeeds(
            pieces=True,
            max_tokens_per_step=1,
            max_members=options.num_continuations * options.max_expansions + 1,
            max_total_tokens=options.max_total_tokens,
            max_ms=options.max_ms,
        )

    def start(self, request: SearchRequest) -> tuple[AStarState, int]:
        """Begin with the prompt, whose own sample is the first child."""
        root = Node(0, 0, 0, 0.0, 1.0, is_complete=False, order=0)
        return AStarState(request.n, root, [Child(0, 0)]), 1

    def step(self, state: AStarState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Take note of draws and scores; expand the next state when the children are known."""
        actions: list[Action] = []
        by_member = {child.member: child for child in state.children}
        for outcome in outcomes:
            if outcome.score is not None:
                self._note_score(state, by_member[outcome.member], outcome.score)
            elif outcome.member in by_member:
                self._note_draw(by_member[outcome.member], outcome, actions)
        if not state.num_expansions:
            actions.append(Score(0, 0, is_complete=False))
            state.num_scores += 1
            self._sample(state, state.parent, actions)
        if state.children and all(child.is_ready for child in state.children):
            if not state.are_asked:
                self._ask(state, actions)
            elif state.root_r is not None and all(c.r is not None for c in state.children):
                self._open_children(state, actions)
                self._go_on(state, actions)
        return actions

    def rank(self, state: AStarState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the n best texts, complete ones first; the last one again if need be."""
        found = [(node.member, node.f) for node in [*state.goals, *self._frontier(state)]]
        found += [(child.member, state.parent.f) for child in state.children]
        ranked = [Ranked(member, -f) for member, f in found if member in members]
        return [*ranked, *ranked[-1:] * state.n][: state.n]

    def report(self, state: AStarState) -> Mapping[str, Any]:
        """Return how much was searched, and the budget that has ended it."""
        found: dict[str, Any] = {
            "expansions": state.num_expansions,
            "scores": state.num_scores,
        }
        return {**found, "budget": state.budget} if state.budget else found

    def _note_score(self, state: AStarState, child: Child, r: float) -> None:
        """Take note of a score; the first one is the prompt's."""
        if state.root_r is None:
            state.root_r = r
            state.parent = Node(0, 0, 0, 0.0, 1 - r, is_complete=False, order=0)
        else:
            child.r = r

    def _note_draw(self, child: Child, outcome: MemberOutcome, actions: list[Action]) -> None:
        child.num_output, child.finish = outcome.num_output, outcome.finish
        child.tokens += outcome.emitted
        child.text += b"".join(outcome.pieces)
        is_over = len(child.tokens) >= self._options.max_step_tokens
        is_over = is_over or any(each in child.text for each in self._delimiters)
        child.is_ready = is_over or child.finish is not None
        if child.is_ready and child.finish is None:
            actions.append(Hold(child.member))

    def _sample(self, state: AStarState, node: Node, actions: list[Action]) -> None:
        """Let the children of a state be sampled; the state's own member is the first."""
        state.parent, state.are_asked = node, False
        if state.num_expansions:
            actions.append(Resume(node.member))
            state.children = [Child(node.member, node.num_output)]
        for _ in range(self._options.num_continuations - 1):
            actions.append(Fork(node.member, node.num_output))
            state.children.append(Child(state.num_members, node.num_output))
            state.num_members += 1
        state.num_expansions += 1

    def _ask(self, state: AStarState, actions: list[Action]) -> None:
        """Ask for the scores of the children, of equal ones of the first."""
        seen: set[tuple[Any, ...]] = set()
        kept: list[Child] = []
        for child in state.children:
            step = (*child.tokens, child.finish)
            if step in seen:
                actions.append(Drop(child.member))
                continue
            seen.add(step)
            kept.append(child)
            is_complete = child.finish is not None
            actions.append(Score(child.member, child.num_output, is_complete))
        state.children, state.are_asked = kept, True
        state.num_scores += len(kept)

    def _open_children(self, state: AStarState, actions: list[Action]) -> None:
        """Put the children among the open states."""
        parent = state.parent
        for child in state.children:
            h = 1 - (child.r or 0.0)
            change = h - parent.h if self._options.cost == "increase" else parent.h - h
            is_complete = child.finish is not None
            state.num_nodes += 1
            node = Node(
                child.member,
                child.num_output,
                parent.depth + 1,
                parent.g + max(0.0, change),
                h,
                is_complete,
                state.num_nodes,
            )
            heapq.heappush(state.open, (node.key, node))
            if not is_complete:
                actions.append(Park(child.member))
        state.children = []

    def _go_on(self, state: AStarState, actions: list[Action]) -> None:
        """Expand the best open state, or end the search."""
        while state.open and len(state.goals) < state.n:
            if state.open[0][1].is_complete:
                state.goals.append(heapq.heappop(state.open)[1])
                continue
            state.budget = self._spent_budget(state)
            if state.budget:
                self._complete_best(state, actions)
                return
            _, node = heapq.heappop(state.open)
            self._sample(state, node, actions)
            return
        actions.append(Finish())

    def _spent_budget(self, state: AStarState) -> str:
        if state.num_expansions >= self._options.max_expansions:
            return "expansions"
        limit = self._options.max_scores
        return "scores" if limit is not None and state.num_scores >= limit else ""

    def _complete_best(self, state: AStarState, actions: list[Action]) -> None:
        """Sample the best open states to their ends, if there are fewer complete ones than n."""
        best = [*state.goals, *self._frontier(state)]
        kept, lost = best[: state.n], best[state.n :]
        actions += [Drop(node.member) for node in lost]
        going = [node for node in kept if not node.is_complete]
        actions += [Resume(node.member) for node in going]
        state.open = [(node.key, node) for node in kept if node not in state.goals]
        if not going:
            actions.append(Finish())

    def _frontier(self, state: AStarState) -> list[Node]:
        """Return the open states, complete ones first, in the order of popping."""
        nodes = [node for _, node in state.open]
        return sorted(nodes, key=lambda node: (not node.is_complete, node.key))


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="a-star",
    summary="Best-first search over sampled steps, guided by scorers.",
    source="A*-decoding, arXiv:2505.13672",
    target="plait.decoders.search.lookahead.a_star:AStar",
    options=AStarOptions,
    num_sequences="num_continuations",
    is_causal=True,
    is_scored=True,
)
