"""The diffusion host: canvases whose holes are settled in any order, emitted from the left.

Per forward pass and sequence: draw at every hole that is read, let the chain's methods decide what
is settled (step.py), and while the new canvas is one of the drafts that were fed as well, go on
with that draft's logits (drafts.py). What is emitted is the left-contiguous settled text that no
method may open again, up to max_tokens or the token that ends it.

Law: the text is a function of the request alone (law 1): not of the batch, of drafts, of chunks or
of evictions. Exact wherever a row's logits are a function of what the row sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget, Forward, Outcome, Proposal
from plait.decoders.contract.decoding import DiffusionMethods
from plait.decoders.contract.text import Text
from plait.decoders.diffusion import drafts, step
from plait.decoders.diffusion import state as states_of
from plait.decoders.diffusion.canvas import GIVEN, Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import (
    CanvasConstraint,
    ConstrainedDraws,
)
from plait.decoders.diffusion.constraints.constrained_draws import LookaheadJob, constrain_draws
from plait.decoders.diffusion.constraints.prefix_matcher import PrefixMatcher
from plait.decoders.diffusion.drafts import CanvasCursor
from plait.decoders.diffusion.draws import (
    DrawJob,
    PositionBias,
    PositionDraws,
    draw,
    token_probs,
    with_additions,
)
from plait.decoders.diffusion.pipeline import (
    UnmaskingConfig,
    UnmaskingPipeline,
    build_pipeline,
    check,
    from_methods,
)
from plait.decoders.diffusion.protocols import CacheView, Floats, Ints, StepView
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.state import DiffusionState
from plait.decoders.diffusion.step_input import (
    LogitsIndex,
    StepInput,
    block_input,
    full_input,
    leave_one_out_input,
)
from plait.decoders.sampling.logprobs import logprobs_of
from plait.kernels.backend import KernelBackend
from plait.kernels.dispatch import cpu_backend

NO_LITERALS = "A scaffold is for answers that a constraint gives a form."
IDLE = StepInput(Proposal(), (), ())


class DiffusionDecoder:
    """Runs the sequences of a masked diffusion model, each by its own methods."""

    name: ClassVar[str] = "diffusion"

    def __init__(
        self,
        spec: DiffusionSpec,
        vocab_size: int,
        *,
        backend: KernelBackend | None = None,
        folder: Path | None = None,
        delimiters: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self.spec = spec
        self._vocab_size = vocab_size
        self._backend = backend or cpu_backend()
        self._folder = folder
        self._delimiters = delimiters
        self._chains: dict[UnmaskingConfig, UnmaskingPipeline] = {}

    def start(self, request: DecodeRequest) -> DiffusionState:
        """Return the state of one new sequence.

        Raises:
            MethodError: a method doesn't fit the weights, or lacks a file beside them.
        """
        state = states_of.start(request, self._chain(request), self.spec)
        if request.constraint is not None and state.answer:
            self._constrain(state, request.constraint)
        if state.chain.scaffold is not None and request.constraint is None:
            state.fault = NO_LITERALS
        return state

    def fork(self, state: DiffusionState, text: Text) -> DiffusionState:
        """Return an independent state for another text."""
        raise NotImplementedError

    def truncate(self, state: DiffusionState, text: Text) -> DiffusionState:
        """Return the state for its text, which has been cut."""
        raise NotImplementedError

    def attention_block_size(self, state: DiffusionState) -> int:
        """Return the block size, or 0 with full attention."""
        if state.fault or not state.answer:
            return 1  # one look at the prompt, and it is over
        return state.chain.block_size if state.chain.attention == "block" else 0

    def propose(self, states: Sequence[DiffusionState], room: DraftBudget) -> Sequence[Proposal]:
        """Feed each sequence's canvas; drafts of those that can use them share the room."""
        eager = sum(state.progress.guess is not None for state in states)
        for state in states:
            state.plan = self._plan(state, room.drafts // max(eager, 1))
        return [state.plan.proposal for state in states if state.plan is not None]

    def accept(self, states: Sequence[DiffusionState], forward: Forward) -> Sequence[Outcome]:
        """Step every canvas as far as the pass tells, and emit what is certain."""
        walks, logits = drafts.begin(states, forward)
        while walks:
            walks = self._advance(walks, logits)
        return [self._outcome(state) for state in states]

    def preempted(self, state: DiffusionState) -> None:
        """Go back to the last canvas whose keys and values are all computed again anyway."""
        if state.refreshed is not None:
            state.progress = state.refreshed

    def finish(self, state: DiffusionState) -> None:
        """Nothing is held."""

    def report(self, state: DiffusionState) -> Mapping[str, Any]:
        """Return the pass that settled each token, the methods, and how drafts fared."""
        return states_of.report_of(state)

    def _constrain(self, state: DiffusionState, constraint: Constraint) -> None:
        """Set a constraint before the first canvas, and fill what it forces there."""
        if state.is_infill:
            state.fault = "A constraint is for text that follows its prompt, not for text between."
            return
        frontier = PrefixMatcher(constraint, state.ends, self._vocab_size)
        state.guard = CanvasConstraint(frontier, state.ends, state.answer[0])
        canvas, is_whole = _forced(state, GIVEN)
        if not is_whole:  # else the first pass comes to the same end, as every text needs one
            state.progress = replace(state.progress, canvas=canvas)

    def _chain(self, request: DecodeRequest) -> UnmaskingPipeline:
        if request.methods is None:
            recipe = check({}, self.spec, request.extras)
        else:
            assert isinstance(request.methods, DiffusionMethods), "methods for another model"
            recipe = from_methods(request.methods)
        if recipe not in self._chains:
            self._chains[recipe] = build_pipeline(
                recipe,
                self.spec,
                folder=self._folder,
                delimiters=self._delimiters,
            )
        return self._chains[recipe]

    def _plan(self, state: DiffusionState, room: int) -> StepInput:
        if state.fault or not state.answer:
            return IDLE
        chain, canvas = state.chain, state.canvas
        stop = step.outlook(canvas, chain, state.room)
        wanted = step.wanted(canvas, chain, stop)
        if chain.revises and len(revisable := _revisable(canvas)):
            return leave_one_out_input(canvas, wanted, revisable, self.spec)
        canvases = _drafts(state, wanted, room)
        if chain.attention == "block":
            return block_input(canvases, wanted, self.spec, has_anchor=state.anchor is not None)
        fed = _refreshed(state, stop)
        return full_input(canvases, _readable(state, wanted, fed), fed, self.spec)

    def _advance(self, walks: Sequence[CanvasCursor], logits: Tensor) -> list[CanvasCursor]:
        """Make one step of each walk; return those that can go on."""
        probes = [(walk, drafts.probe(walk)) for walk in walks]
        notes = [(walk.state, walk.reading, at) for walk, at in probes if at is not None]
        walks = [walk for walk, at in probes if at is None]
        readings = [walk.reading for walk in walks]
        jobs = [drafts.job(walk) for walk in walks]
        drawn = draw(logits, jobs, backend=self._backend)
        views = [self._open(walk, each, logits) for walk, each in zip(walks, drawn, strict=True)]
        steps = self._with_scorers(walks, jobs, views, logits)
        ruled = self._rule(walks, steps)
        for walk, reading, (view, ruling) in zip(walks, readings, ruled, strict=True):
            notes.append((walk.state, reading, drafts.take_step(walk, view, ruling)))
        self._note_logprobs(notes, logits)
        return [walk for walk in walks if drafts.goes_on(walk)]

    def _rule(
        self, walks: Sequence[CanvasCursor], steps: Sequence[tuple[StepView, Tensor, DrawJob]]
    ) -> list[tuple[StepView, ConstrainedDraws | None]]:
        """Return each walk's view, and what a constraint allows of it."""
        ruled: list[tuple[StepView, ConstrainedDraws | None]] = [
            (view, None) for view, _, _ in steps
        ]
        cases: dict[int, LookaheadJob] = {}
        for i, (walk, (view, scores, job)) in enumerate(zip(walks, steps, strict=True)):
            if walk.state.guard is not None and not walk.state.fault:
                literals = walk.state.chain.scaffold is not None
                cases[i] = LookaheadJob(walk.state.guard, walk.canvas, view, scores, job, literals)
        found = constrain_draws(list(cases.values()), backend=self._backend)
        for i, ruling in zip(cases, found, strict=True):
            if isinstance(ruling, str):
                walks[i].state.fault = ruling
            else:
                ruled[i] = ruling.view, ruling
        return ruled

    def _open(self, walk: CanvasCursor, drawn: PositionDraws, logits: Tensor) -> StepView:
        """Return what methods see of the block, which begins now if none has."""
        state, canvas = walk.state, walk.canvas
        if np.isnan(drawn.p).any():
            state.fault = "The model's logits are not numbers."
        ends, key = state.ends, state.law.key
        if not canvas.end:
            stop = step.outlook(canvas, state.chain, state.room)
            look = step.view_of(canvas, drawn, stop, ends=ends, key=key)
            step.open_block(canvas, state.chain, look)
        shadow = self._shadow(walk, logits)
        return step.view_of(canvas, drawn, canvas.end, ends=ends, key=key, shadow=shadow)

    def _shadow(self, walk: CanvasCursor, logits: Tensor) -> Floats | None:
        """Return what shadow rows give to settled tokens of the block; nan where there is none."""
        canvas, plan = walk.canvas, walk.plan
        if not walk.state.chain.revises:
            return None
        shadow = np.full(canvas.end - canvas.begin, np.nan)
        if plan.shadow is not None:
            positions, rows = plan.shadow.positions, plan.shadow.rows + walk.offset
            tokens = canvas.ids[positions - canvas.start]
            shadow[positions - canvas.begin] = token_probs(
                logits, rows, tokens, backend=self._backend
            )
        return shadow

    def _with_scorers(
        self,
        walks: Sequence[CanvasCursor],
        jobs: Sequence[DrawJob],
        views: list[StepView],
        logits: Tensor,
    ) -> list[tuple[StepView, Tensor, DrawJob]]:
        """Draw again where a scorer has something to add; return also what was drawn from."""
        steps = [(view, logits, job) for view, job in zip(views, jobs, strict=True)]
        added: dict[int, PositionBias] = {}
        for i, (walk, view) in enumerate(zip(walks, views, strict=True)):
            bias = step.bias_of(walk.canvas, walk.state.chain, view)
            if bias is not None and len(bias.rows):
                added[i] = PositionBias(view.holes[bias.rows], bias.tokens, bias.deltas)
        if not added:
            return steps
        scores, again = with_additions(logits, [(jobs[i], added[i]) for i in added])
        for i, job, drawn in zip(
            added, again, draw(scores, again, backend=self._backend), strict=True
        ):
            walk, view = walks[i], views[i]
            biased = step.view_of(
                walk.canvas,
                drawn,
                view.stop,
                ends=walk.state.ends,
                key=view.key,
                shadow=view.shadow,
            )
            steps[i] = (biased, scores, job)
        return steps

    def _note_logprobs(
        self, notes: Sequence[tuple[DiffusionState, LogitsIndex, Ints]], logits: Tensor
    ) -> None:
        """Write down what the model gave to the tokens just settled, for those that ask."""
        rows: list[int] = []
        asked: list[tuple[Canvas, int, int]] = []
        for state, reading, positions in notes:
            k = state.law.params.logprobs
            if k is not None:
                at = np.searchsorted(reading.positions, positions)
                rows += reading.rows[at].tolist()
                asked += [(state.canvas, position, k) for position in positions.tolist()]
        tokens = [int(canvas.ids[position - canvas.start]) for canvas, position, _ in asked]
        ks = [k for _, _, k in asked]
        entries = logprobs_of(logits, rows, tokens, ks, backend=self._backend)
        for (canvas, position, _), entry in zip(asked, entries, strict=True):
            canvas.logprobs[position] = entry

    def _outcome(self, state: DiffusionState) -> Outcome:
        """Emit what is certain, and go on to the next canvas when this one is done."""
        if state.fault:
            return Outcome(fault=state.fault)
        if not state.answer:  # max_tokens 0: only the prompt was asked about
            return Outcome(finish="length")
        outcome = states_of.emit(state)
        while outcome.finish is None and state.canvas.begin >= state.canvas.stop:
            state.anchor = None
            state.refreshed = None
            following = states_of.next_canvas(state, self.spec)
            state.progress = replace(
                state.progress, canvas=following, guess=None, age=0, p=np.zeros(0)
            )
            if state.guard is not None:
                canvas, _ = _forced(state, len(state.progress.pass_of))
                state.progress = replace(state.progress, canvas=canvas)
                outcome = _joined(outcome, states_of.emit(state))
        return outcome


def _forced(state: DiffusionState, number: int) -> tuple[Canvas, bool]:
    """Return a canvas that begins with what is forced, and whether that fills a block of it."""
    canvas = state.canvas.fork()
    rows = None if state.law.params.logprobs is None else np.zeros(0, np.int64)
    scene = step.StepContext(state.room, number, state.guard, rows)
    return canvas, step.go_on(canvas, state.chain, scene)


def _joined(first: Outcome, then: Outcome) -> Outcome:
    """Return what two canvases emit one after the other."""
    emit, logprobs = [*first.emit, *then.emit], [*first.logprobs, *then.logprobs]
    return replace(then, emit=emit, logprobs=logprobs)


def _revisable(canvas: Canvas) -> Ints:
    """Return the settled positions of the block that are still the host's to change."""
    at = slice(canvas.begin - canvas.start, max(canvas.end, canvas.begin) - canvas.start)
    return np.flatnonzero(canvas.settled_in[at] != GIVEN) + canvas.begin


def _drafts(state: DiffusionState, wanted: Ints, room: int) -> list[Canvas]:
    """Return the canvas and the drafts of it that are worth feeding."""
    verifier, guess = state.chain.verifier, state.progress.guess
    if verifier is None or guess is None:
        return [state.canvas]
    width = verifier.width(len(wanted), len(state.canvas.ids), room)
    return drafts.drafts_of(state.canvas, guess, width - 1, state.guard, state.chain.scaffold)


def _refreshed(state: DiffusionState, stop: int) -> Ints | None:
    """Return the positions to compute again, given where the block's outlook ends; None: all."""
    chain, canvas, progress = state.chain, state.canvas, state.progress
    if chain.cache is None or progress.age == 0:
        return None
    holes = canvas.open_holes(canvas.begin, stop)
    view = CacheView(
        length=len(canvas.ids),
        prompt=state.answer[0],
        start=canvas.begin,
        stop=stop,
        holes=holes,
        fresh=progress.fresh,
        p=progress.p[holes] if len(progress.p) else np.zeros(len(holes)),
        step=canvas.step,
        age=progress.age,
    )
    return chain.cache.rows(view)


def _readable(state: DiffusionState, wanted: Ints, fed: Ints | None) -> Ints:
    """Return the positions whose laws are read: an active set may leave holes of the block out."""
    if fed is None:
        return wanted
    canvas = state.canvas
    kept = np.isin(wanted, fed)
    if state.guard is not None:  # it stands at the left-most hole
        kept |= wanted == canvas.first_hole(canvas.begin)
    open_ones = canvas.hole[wanted - canvas.start]
    return wanted[kept] if (kept & open_ones).any() else wanted
