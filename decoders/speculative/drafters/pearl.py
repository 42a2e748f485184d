"""PEARL: check one token early, and draft on for as long as the drafts are right.

`overlap` is the published schedule: while the target verifies, the draft model, in a thread of its
own, writes on behind what is being verified. After a wrong draft nothing is pending, so the target
takes a plain step (pre-verify) during which gamma tokens are drafted; the first of them is judged
by that step already. If it is right the others are pending, and are verified while the next gamma
are drafted (post-verify), and so on until one is wrong. It wants cores that idle.

Without overlap it is the schedule's other half, a length that adapts: one token after a wrong
draft, gamma more each time that all of a draft was right.

Law: none of its own; verified as every draft. Departs from the paper in the verifier: sample and
match under shared noise, which keeps the text as it is without drafts. The published code judges a
pre-verified token and the one after it by the same coin, which makes sampled texts follow another
law (docs/speculation.md); here no coin is thrown.
Source: Liu et al., PEARL, arXiv:2408.11850, algorithm 2; nano-PEARL for gamma from speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT
from plait.decoders.speculative.drafters.draft_model import DraftModelOptions

if TYPE_CHECKING:
    from plait.decoders.speculative.draft_model.chains import Chains, Lane, Wish

Gamma = Annotated[int, Field(ge=1, le=MAX_DRAFT)] | Literal["auto"]
UNKNOWN_GAMMA = 4  # before speeds are known


class PearlOptions(DraftModelOptions):
    """The schedule."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Tokens behind the text, at most.")
    min_survival: float = Field(
        0.0, ge=0, le=1, description="A chain that is less likely to come true is not continued."
    )
    gamma: Gamma = Field(
        4, description="Tokens drafted during one verification; auto: as the speeds say."
    )
    overlap: bool = Field(
        False, description="Draft in a thread while the target verifies: for cores that idle."
    )


class Pace:
    """How many tokens the draft model writes while the target makes one pass."""

    def __init__(self, options: PearlOptions, chains: Chains, costs: CostCurve) -> None:
        self._gamma = options.gamma
        self._most = options.max_draft
        self._chains = chains
        self._costs = costs

    @property
    def gamma(self) -> int:
        """Tokens, >= 1."""
        if self._gamma != "auto":
            return min(self._gamma, self._most)
        if self._chains.seconds == 0:
            return min(UNKNOWN_GAMMA, self._most)
        ratio = float(self._costs.seconds(1)[1]) / self._chains.seconds
        return min(max(round(ratio), 1), self._most)


@dataclass(slots=True)
class Adaptive:
    """A lane, and how much is drafted next."""

    lane: Lane
    length: int = 1  # pre-verify


class Pearl:
    """Draft, then verify, with the schedule's length."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, chains: Chains, costs: CostCurve) -> None:
        self._most = options.max_draft
        self._chains = chains
        self._pace = Pace(options, chains, costs)

    def start(self, request: DecodeRequest) -> Adaptive:
        """Begin with one token."""
        return Adaptive(self._chains.start(request))

    def propose(self, asks: Sequence[DraftRequest[Adaptive]]) -> Sequence[Draft]:
        """Return drafts of each sequence's present length."""
        drafts = [Draft()] * len(asks)
        wishes: dict[int, Wish] = {}
        for i, ask in enumerate(asks):
            limit = min(ask.limit, ask.state.length - len(ask.ahead))
            if limit > 0:
                wishes[i] = self._chains.wish(
                    ask.state.lane, ask.text, ask.ahead, limit, ask.constraint
                )
        for i, draft in zip(wishes, self._chains.draw([*wishes.values()]), strict=True):
            drafts[i] = draft
        return drafts

    def commit(self, state: Adaptive, text: Sequence[int], verdict: VerificationResult) -> None:
        """Go on if all that was fed was right, back to one token if not."""
        self._chains.commit(state.lane, verdict.emitted)
        if len(verdict.reached) <= len(verdict.token_ids):
            state.length = 1
        elif verdict.token_ids:
            state.length = min(state.length + self._pace.gamma, self._most)

    def finish(self, state: Adaptive, text: Sequence[int]) -> None:
        """Give back the cache."""
        self._chains.finish(state.lane)


@dataclass(slots=True)
class Pending:
    """A lane, and what is drafted of its text: tokens from `base` on, in position."""

    lane: Lane
    base: int = 0
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    asked_at: int = -1  # length of the text when it was last asked about

    def behind(self, text: Sequence[int], ahead: Sequence[int]) -> Draft:
        """Return what is drafted behind text and ahead; nothing if they are not as expected."""
        context = [*text[self.base :], *ahead]
        if self.tokens[: len(context)] != context:
            return Draft()
        return Draft(self.tokens[len(context) :], self.chances[len(context) :])

    def rebase(self, wish: Wish, pending: Draft) -> None:
        """Expect what is in flight: the draft model writes on behind it."""
        self.base = wish.settled
        self.tokens = [*wish.context[wish.settled :]]
        missing = len(self.tokens) - len(pending.token_ids)
        self.chances = [*[1.0] * missing, *pending.chances]


class OverlappedPearl:
    """Draft while the target verifies."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, chains: Chains, costs: CostCurve) -> None:
        self._most = options.max_draft
        self._chains = chains
        self._pace = Pace(options, chains, costs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draft-model")
        self._job: Future[list[Draft]] | None = None
        self._in_flight: list[Pending] = []

    def start(self, request: DecodeRequest) -> Pending:
        """Begin with a plain step."""
        return Pending(self._chains.start(request))

    def propose(self, asks: Sequence[DraftRequest[Pending]]) -> Sequence[Draft]:
        """Return what was drafted during the last pass, and set out to draft behind that.

        Asked once more in the same step, there is nothing to add: what follows is being drafted.
        """
        drafts = [Draft()] * len(asks)
        fresh = [i for i, ask in enumerate(asks) if ask.state.asked_at != len(ask.text)]
        if not fresh:
            return drafts
        self._collect()
        wishes: list[Wish] = []
        for i in fresh:
            ask, state = asks[i], asks[i].state
            state.asked_at = len(ask.text)
            found = state.behind(ask.text, ask.ahead)
            drafts[i] = Draft(found.token_ids[: ask.limit], found.chances[: ask.limit])
            wishes.append(self._wish(ask, drafts[i]))
            state.rebase(wishes[-1], drafts[i])
        self._in_flight = [asks[i].state for i in fresh]
        self._job = self._thread.submit(self._chains.draw, wishes)
        return drafts

    def commit(self, state: Pending, text: Sequence[int], verdict: VerificationResult) -> None:
        """Take note of the text; whether drafts were right is seen when the next are due."""
        self._chains.commit(state.lane, verdict.emitted)

    def finish(self, state: Pending, text: Sequence[int]) -> None:
        """Give back the cache, once nobody writes to it."""
        self._collect()
        self._chains.finish(state.lane)

    def _wish(self, ask: DraftRequest[Pending], pending: Draft) -> Wish:
        """Return what to draft behind what is being verified.

        Without its constraint: the walk of the verdict moves that one at the same time.
        """
        ahead = [*ask.ahead, *pending.token_ids]
        limit = min(self._pace.gamma, self._most)
        return self._chains.wish(ask.state.lane, ask.text, ahead, limit, None)

    def _collect(self) -> None:
        """Wait for the thread, and put its drafts behind what they were drafted for."""
        if self._job is None:
            return
        drawn, self._job = self._job.result(), None
        for state, draft in zip(self._in_flight, drawn, strict=True):
            state.tokens.extend(draft.token_ids)
            state.chances.extend(draft.chances)
        self._in_flight = []


METHOD = Method(
    kind="drafter",
    name="pearl",
    summary="A draft model that writes on while it is right, and checks one token when it is not.",
    source="PEARL, arXiv:2408.11850, algorithm 2",
    target="plait.decoders.speculative.draft_model.make:pearl",
    options=PearlOptions,
    needs=frozenset({"draft_model"}),
    presets={
        "paper": {"gamma": 4, "overlap": True, "always": True},
        "nano-pearl": {"gamma": "auto", "overlap": True, "always": True},
    },
)
