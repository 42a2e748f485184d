"""PEARL: verify one token early, and draft on for as long as the drafts are accepted.

`overlap` is the published schedule. While the target verifies, the draft model, in a thread of its
own, continues behind the tokens that are being verified. After a rejection nothing is in flight, so
the target takes a plain step (pre-verify) during which gamma tokens are drafted; that step already
verifies the first of them. If it is accepted, the others are verified while the next gamma tokens
are drafted (post-verify), and so on until one is rejected. This needs idle cores.

Without `overlap` only the adaptive length of the schedule is left: one token after a rejection,
gamma more each time that a whole draft was accepted.

Law: none of its own; every draft is verified. Differs from the paper in the verifier: sample and
match under shared noise, so the text is the one without drafts. The published code verifies a
pre-verified token and the one after it with the same random number, which changes the distribution
of sampled texts (tests/oracle/test_speculative_rules.py); here no such number is drawn.
Source: Liu et al., PEARL, arXiv:2408.11850, algorithm 2; nano-PEARL for gamma from speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
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
DEFAULT_GAMMA = 4  # until speeds are known


class PearlOptions(DraftModelOptions):
    """The schedule."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Most tokens of one draft.")
    min_survival: float = Field(
        0.0, ge=0, le=1, description="A draft ends where its path probability falls below."
    )
    gamma: Gamma = Field(
        4, description="Tokens drafted during one verification; auto: from measured speeds."
    )
    overlap: bool = Field(
        False, description="Draft in a thread while the target verifies: needs idle cores."
    )


class GammaPolicy:
    """How many tokens are drafted during one pass of the target."""

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._gamma = options.gamma
        self._max_draft = options.max_draft
        self._runner = runner
        self._costs = costs

    @property
    def gamma(self) -> int:
        """Tokens, >= 1."""
        if self._gamma != "auto":
            return min(self._gamma, self._max_draft)
        if self._runner.seconds == 0:
            return min(DEFAULT_GAMMA, self._max_draft)
        ratio = float(self._costs.seconds(1)[1]) / self._runner.seconds
        return min(max(round(ratio), 1), self._max_draft)


@dataclass(slots=True)
class PearlState:
    """One sequence, and the length of its next draft."""

    sequence: DraftSequence
    length: int = 1  # pre-verify


class PearlDrafter(Drafter[PearlState]):
    """Draft, then verify, with the schedule's length."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._max_draft = options.max_draft
        self._runner = runner
        self._policy = GammaPolicy(options, runner, costs)

    def start(self, request: DecodeRequest) -> PearlState:
        """Return the state, which begins with a draft of one token."""
        return PearlState(self._runner.start(request))

    def propose(self, requests: Sequence[DraftRequest[PearlState]]) -> Sequence[Draft]:
        """Return drafts of each sequence's current length."""
        drafts = [Draft()] * len(requests)
        jobs: dict[int, DraftJob] = {}
        for i, request in enumerate(requests):
            state = request.state
            max_tokens = min(request.max_tokens, state.length - len(request.draft_prefix))
            if max_tokens > 0:
                jobs[i] = self._runner.new_job(state.sequence, request, max_tokens)
        for i, draft in zip(jobs, self._runner.draft([*jobs.values()]), strict=True):
            drafts[i] = draft
        return drafts

    def observe(self, state: PearlState, text: Sequence[int], result: VerificationResult) -> None:
        """Draft longer if the whole draft was accepted; one token if not."""
        self._runner.observe(state.sequence, result.emitted)
        if len(result.accepted_rows) <= len(result.token_ids):
            state.length = 1
        elif result.token_ids:
            state.length = min(state.length + self._policy.gamma, self._max_draft)

    def finish(self, state: PearlState, text: Sequence[int]) -> None:
        """Release the cache."""
        self._runner.release(state.sequence)


@dataclass(slots=True)
class OverlappedPearlState:
    """One sequence, and what is drafted of its text: tokens from position `base` on."""

    sequence: DraftSequence
    base: int = 0
    tokens: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    drafted_at: int = -1  # length of the text when drafting last began

    def drafted_after(self, text: Sequence[int], draft_prefix: Sequence[int]) -> Draft:
        """Return what is drafted behind the text and the prefix; nothing if they differ from it."""
        context = [*text[self.base :], *draft_prefix]
        if self.tokens[: len(context)] != context:
            return Draft()
        return Draft(self.tokens[len(context) :], self.acceptance_probs[len(context) :])

    def rebase(self, job: DraftJob, in_flight: Draft) -> None:
        """Expect that what is being verified is accepted: the job drafts behind it."""
        self.base = job.num_text
        self.tokens = [*job.context[job.num_text :]]
        missing = len(self.tokens) - len(in_flight.token_ids)
        self.acceptance_probs = [*[1.0] * missing, *in_flight.acceptance_probs]


class OverlappedPearlDrafter(Drafter[OverlappedPearlState]):
    """Draft while the target verifies."""

    name: ClassVar[str] = "pearl"

    def __init__(self, options: PearlOptions, runner: DraftModelRunner, costs: CostCurve) -> None:
        self._max_draft = options.max_draft
        self._runner = runner
        self._policy = GammaPolicy(options, runner, costs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draft-model")
        self._running: Future[list[Draft]] | None = None
        self._in_flight: list[OverlappedPearlState] = []  # those that the thread drafts for

    def start(self, request: DecodeRequest) -> OverlappedPearlState:
        """Return the state, which begins with a plain step."""
        return OverlappedPearlState(self._runner.start(request))

    def propose(self, requests: Sequence[DraftRequest[OverlappedPearlState]]) -> Sequence[Draft]:
        """Return what was drafted during the last pass, and begin to draft behind it.

        A second call in the same step has nothing to add: what follows is being drafted.
        """
        drafts = [Draft()] * len(requests)
        fresh = [i for i, each in enumerate(requests) if each.state.drafted_at != len(each.text)]
        if not fresh:
            return drafts
        self._collect()
        jobs: list[DraftJob] = []
        for i in fresh:
            request, state = requests[i], requests[i].state
            state.drafted_at = len(request.text)
            found, limit = (
                state.drafted_after(request.text, request.draft_prefix),
                request.max_tokens,
            )
            drafts[i] = Draft(found.token_ids[:limit], found.acceptance_probs[:limit])
            jobs.append(self._new_job(request, drafts[i]))
            state.rebase(jobs[-1], drafts[i])
        self._in_flight = [requests[i].state for i in fresh]
        self._running = self._thread.submit(self._runner.draft, jobs)
        return drafts

    def observe(
        self, state: OverlappedPearlState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Update the sampling state; whether drafts were accepted is seen at the next draft."""
        self._runner.observe(state.sequence, result.emitted)

    def finish(self, state: OverlappedPearlState, text: Sequence[int]) -> None:
        """Release the cache, once the thread no longer writes to it."""
        self._collect()
        self._runner.release(state.sequence)

    def _new_job(self, request: DraftRequest[OverlappedPearlState], in_flight: Draft) -> DraftJob:
        """Return the job to draft behind what is being verified.

        Without the constraint, whose automaton the target's step uses at the same time.
        """
        draft_prefix = [*request.draft_prefix, *in_flight.token_ids]
        behind = replace(request, draft_prefix=draft_prefix, constraint=None)
        max_tokens = min(self._policy.gamma, self._max_draft)
        return self._runner.new_job(request.state.sequence, behind, max_tokens)

    def _collect(self) -> None:
        """Wait for the thread, and add its drafts to the states that they belong to."""
        if self._running is None:
            return
        drafts, self._running = self._running.result(), None
        for state, draft in zip(self._in_flight, drafts, strict=True):
            state.tokens.extend(draft.token_ids)
            state.acceptance_probs.extend(draft.acceptance_probs)
        self._in_flight = []


METHOD = Method(
    kind="drafter",
    name="pearl",
    summary="A draft model that drafts more while it is accepted, and one token after a rejection.",
    source="PEARL, arXiv:2408.11850, algorithm 2",
    target="plait.decoders.speculative.draft_model.make:pearl",
    options=PearlOptions,
    needs=frozenset({"draft_model"}),
    presets={
        "paper": {"gamma": 4, "overlap": True, "always": True},
        "nano-pearl": {"gamma": "auto", "overlap": True, "always": True},
    },
)
