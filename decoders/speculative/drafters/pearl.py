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
    from plait.decoders.speculative.draft_model.runner import (
        DraftJob,
        DraftModelRunner,
        DraftSequence,
    )

Gamma = Annotated[int, Field(ge=1, le=MAX_DRAFT)] | Literal["auto"]
DEFAULT_GAMMA = 4  # before speeds are known


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


class GammaPolicy:
    """How many tokens the draft model writes while the target makes one pass."""

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._gamma = options.gamma
        self._most = options.max_draft
        self._chains = runner
        self._costs = costs

    @property
    def gamma(self) -> int:
        """Tokens, >= 1."""
        if self._gamma != "auto":
            return min(self._gamma, self._most)
        if self._chains.seconds == 0:
            return min(DEFAULT_GAMMA, self._most)
        ratio = float(self._costs.seconds(1)[1]) / self._chains.seconds
        return min(max(round(ratio), 1), self._most)


@dataclass(slots=True)
class PearlState:
    """A lane, and how much is drafted next."""

    sequence: DraftSequence
    length: int = 1  # pre-verify


class PearlDrafter:
    """Draft, then verify, with the schedule's length."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._most = options.max_draft
        self._chains = runner
        self._pace = GammaPolicy(options, runner, costs)

    def start(self, request: DecodeRequest) -> PearlState:
        """Begin with one token."""
        return PearlState(self._chains.start(request))

    def propose(self, requests: Sequence[DraftRequest[PearlState]]) -> Sequence[Draft]:
        """Return drafts of each sequence's present length."""
        drafts = [Draft()] * len(requests)
        jobs: dict[int, DraftJob] = {}
        for i, request in enumerate(requests):
            max_tokens = min(request.max_tokens, request.state.length - len(request.draft_prefix))
            if max_tokens > 0:
                jobs[i] = self._chains.job(
                    request.state.sequence,
                    request.text,
                    request.draft_prefix,
                    max_tokens,
                    request.constraint,
                )
        for i, draft in zip(jobs, self._chains.draw([*jobs.values()]), strict=True):
            drafts[i] = draft
        return drafts

    def commit(self, state: PearlState, text: Sequence[int], result: VerificationResult) -> None:
        """Go on if all that was fed was right, back to one token if not."""
        self._chains.commit(state.sequence, result.emitted)
        if len(result.accepted_rows) <= len(result.token_ids):
            state.length = 1
        elif result.token_ids:
            state.length = min(state.length + self._pace.gamma, self._most)

    def finish(self, state: PearlState, text: Sequence[int]) -> None:
        """Give back the cache."""
        self._chains.finish(state.sequence)


@dataclass(slots=True)
class OverlappedPearlState:
    """A lane, and what is drafted of its text: tokens from `base` on, in position."""

    sequence: DraftSequence
    base: int = 0
    tokens: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    asked_at: int = -1  # length of the text when it was last asked about

    def behind(self, text: Sequence[int], draft_prefix: Sequence[int]) -> Draft:
        """Return what is drafted behind text and ahead; nothing if they are not as expected."""
        context = [*text[self.base :], *draft_prefix]
        if self.tokens[: len(context)] != context:
            return Draft()
        return Draft(self.tokens[len(context) :], self.acceptance_probs[len(context) :])

    def rebase(self, job: DraftJob, pending: Draft) -> None:
        """Expect what is in flight: the draft model writes on behind it."""
        self.base = job.settled
        self.tokens = [*job.context[job.settled :]]
        missing = len(self.tokens) - len(pending.token_ids)
        self.acceptance_probs = [*[1.0] * missing, *pending.acceptance_probs]


class OverlappedPearlDrafter:
    """Draft while the target verifies."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._most = options.max_draft
        self._chains = runner
        self._pace = GammaPolicy(options, runner, costs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draft-model")
        self._job: Future[list[Draft]] | None = None
        self._in_flight: list[OverlappedPearlState] = []

    def start(self, request: DecodeRequest) -> OverlappedPearlState:
        """Begin with a plain step."""
        return OverlappedPearlState(self._chains.start(request))

    def propose(self, requests: Sequence[DraftRequest[OverlappedPearlState]]) -> Sequence[Draft]:
        """Return what was drafted during the last pass, and set out to draft behind that.

        Asked once more in the same step, there is nothing to add: what follows is being drafted.
        """
        drafts = [Draft()] * len(requests)
        fresh = [
            i for i, request in enumerate(requests) if request.state.asked_at != len(request.text)
        ]
        if not fresh:
            return drafts
        self._collect()
        jobs: list[DraftJob] = []
        for i in fresh:
            request, state = requests[i], requests[i].state
            state.asked_at = len(request.text)
            found = state.behind(request.text, request.draft_prefix)
            drafts[i] = Draft(
                found.token_ids[: request.max_tokens], found.acceptance_probs[: request.max_tokens]
            )
            jobs.append(self._wish(request, drafts[i]))
            state.rebase(jobs[-1], drafts[i])
        self._in_flight = [requests[i].state for i in fresh]
        self._job = self._thread.submit(self._chains.draw, jobs)
        return drafts

    def commit(
        self, state: OverlappedPearlState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Take note of the text; whether drafts were right is seen when the next are due."""
        self._chains.commit(state.sequence, result.emitted)

    def finish(self, state: OverlappedPearlState, text: Sequence[int]) -> None:
        """Give back the cache, once nobody writes to it."""
        self._collect()
        self._chains.finish(state.sequence)

    def _wish(self, request: DraftRequest[OverlappedPearlState], pending: Draft) -> DraftJob:
        """Return what to draft behind what is being verified.

        Without its constraint: the walk of the verdict moves that one at the same time.
        """
        draft_prefix = [*request.draft_prefix, *pending.token_ids]
        max_tokens = min(self._pace.gamma, self._most)
        return self._chains.job(
            request.state.sequence, request.text, draft_prefix, max_tokens, None
        )

    def _collect(self) -> None:
        """Wait for the thread, and put its drafts behind what they were drafted for."""
        if self._job is None:
            return
        drawn, self._job = self._job.result(), None
        for state, draft in zip(self._in_flight, drawn, strict=True):
            state.tokens.extend(draft.token_ids)
            state.acceptance_probs.extend(draft.acceptance_probs)
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
