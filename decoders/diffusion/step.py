"""From the logits of a pass to the next canvases; read from top to bottom.

Each step draws a token at every masked position that was read, lets a constraint check the draws
and the pipeline select among them. While the new canvas equals one of the drafts that were fed, the
next step uses the draft's logits; otherwise the sequence waits for the next pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.decoder import Forward
from plait.decoders.diffusion.canvas import Canvas, LiteralDraws, PendingDraws
from plait.decoders.diffusion.constraints.canvas_constraint import (
    ConstrainedDraws,
    LookaheadJob,
    constrain_draws,
)
from plait.decoders.diffusion.draws import (
    DrawJob,
    PositionDraws,
    biased_logits,
    draw,
    position_states,
    token_probs,
)
from plait.decoders.diffusion.protocols import (
    Bools,
    ConstraintMethod,
    Floats,
    Ints,
    LogitBias,
    StepView,
    WindowPolicy,
)
from plait.decoders.diffusion.state import DiffusionState, unmasked_outputs
from plait.decoders.diffusion.step_input import PRECEDING_ROW, LogitsIndex, StepInput
from plait.decoders.diffusion.unmasking import (
    StepContext,
    finish_blocks,
    unmask,
)
from plait.decoders.sampling.logprobs import logprobs_of
from plait.decoders.sampling.state import SamplingState
from plait.kernels.backend import KernelBackend

Drawn = tuple[StepView, Tensor, DrawJob]  # with the scores drawn from, and the job that reads them


@dataclass(slots=True)
class CanvasCursor:
    """Which of the canvases that a sequence has fed the next step starts from."""

    state: DiffusionState
    fed: StepInput
    offset: int  # of the sequence's rows in the logits
    preceding_row: int  # of the logits: the row before the canvas
    canvas: Canvas  # a fork of the state's, changed by the step
    branch: int = 0  # index of the fed canvas that equals it

    @property
    def logits_index(self) -> LogitsIndex:
        """The positions read now, and their rows of the logits."""
        own = self.fed.logits[self.branch]
        rows = np.where(own.rows == PRECEDING_ROW, self.preceding_row, own.rows + self.offset)
        return LogitsIndex(own.positions, rows)

    @property
    def context(self) -> StepContext:
        """What the step depends on beside the canvas."""
        state = self.state
        fillable = None if state.num_logprobs is None else self.logits_index.positions
        if not state.pipeline.fills_forced:
            fillable = np.zeros(0, np.int64)
        return StepContext(state.num_canvas_outputs, state.next_step, state.constraint, fillable)


def advance(states: Sequence[DiffusionState], forward: Forward, *, backend: KernelBackend) -> None:
    """Make all steps that the pass allows, on every canvas; `backend` as in draw."""
    cursors, logits = _begin(states, forward)
    while cursors:
        cursors = _step(cursors, logits, backend)


def _begin(states: Sequence[DiffusionState], forward: Forward) -> tuple[list[CanvasCursor], Tensor]:
    """Count the pass; return a cursor for each canvas, and the logits with all kept rows."""
    kept: list[Tensor] = []
    cursors = []
    for state, offset in zip(states, forward.offsets[:-1], strict=True):
        fed = state.step_input
        if fed is None or not fed.logits:
            continue
        if fed.reads_preceding:
            state.preceding_logits = forward.logits[offset].clone()
        row = len(forward.logits) + len(kept)
        if (fed.logits[0].rows == PRECEDING_ROW).any():
            assert state.preceding_logits is not None
            kept.append(state.preceding_logits)
        cursors.append(CanvasCursor(state, fed, offset, row, state.canvas))
        _count_pass(state, fed)
    return cursors, torch.cat([forward.logits, torch.stack(kept)]) if kept else forward.logits


def _count_pass(state: DiffusionState, fed: StepInput) -> None:
    """Count the pass and its drafts; note the progress from which it can be repeated."""
    progress = state.progress
    state.num_drafted += len(fed.canvases) - 1
    since_refresh = progress.passes_since_refresh + 1
    is_full = len(fed.proposal.token_ids) == len(state.canvas.ids)
    if state.pipeline.cache is not None and is_full:
        state.last_refresh, since_refresh = progress, 1
    passes = progress.passes + 1
    state.progress = replace(progress, passes=passes, passes_since_refresh=since_refresh)


def _step(
    cursors: Sequence[CanvasCursor], logits: Tensor, backend: KernelBackend
) -> list[CanvasCursor]:
    """Make one step on each canvas; return the cursors whose new canvas was fed as a draft."""
    forced = [(cursor, _fill_forced(cursor)) for cursor in cursors]
    unmasked = [(cursor, positions) for cursor, positions in forced if positions is not None]
    cursors = [cursor for cursor, positions in forced if positions is None]
    jobs = [_draw_job(cursor) for cursor in cursors]
    draws = draw(logits, jobs, backend=backend)
    views = [_view(*each, logits, backend) for each in zip(cursors, draws, strict=True)]
    drawn = _with_bias(cursors, jobs, views, logits, backend)
    for cursor, view, allowed in zip(*_constrain(cursors, drawn, backend), strict=True):
        unmasked.append((cursor, _unmask(cursor, view, allowed)))
    _note_logprobs(unmasked, logits, backend)
    return [cursor for cursor in cursors if _move_to_draft(cursor)]


def _fill_forced(cursor: CanvasCursor) -> Ints | None:
    """Unmask what is forced but waited for logits that give its logprobs; return the positions.

    None: nothing was waiting, and the logits are for a step.
    """
    state = cursor.state
    if state.constraint is None or state.num_logprobs is None:
        return None
    canvas = state.canvas.fork()
    is_finished = finish_blocks(canvas, state.pipeline, cursor.context)
    if not is_finished and canvas.same_input(state.canvas):
        return None
    return _adopt(state, canvas, None, state.progress.p)


def _draw_job(cursor: CanvasCursor) -> DrawJob:
    """Fork the canvas for a step; return what will be drawn for it."""
    state = cursor.state
    cursor.canvas = canvas = state.canvas.fork()
    index = cursor.logits_index
    made: list[SamplingState] = []
    if not state.settings.is_plain:
        before = state.text.token_ids[: canvas.start]
        text = [*before, *canvas.tokens(canvas.start, canvas.stop).tolist()]
        first, own = state.output_positions[0], unmasked_outputs(state)
        made = position_states(state.sampling, text, first, index.positions, own)
    job = DrawJob(state.settings, index.positions, index.rows, state.pipeline.needs, made)
    if state.constraint is None:
        return job
    stop = canvas.lookahead_stop(state.pipeline, state.num_canvas_outputs)
    position, bitmask = state.constraint.bitmask(canvas, stop)
    at = int(np.searchsorted(index.positions, position))
    return replace(job, bitmask=bitmask, bitmask_index=at)


def _view(
    cursor: CanvasCursor, draws: PositionDraws, logits: Tensor, backend: KernelBackend
) -> StepView:
    """Return what methods see of the block; if none has begun, begin one."""
    state, canvas = cursor.state, cursor.canvas
    if np.isnan(draws.p).any():
        state.fault = "The model's logits are not numbers."
    if not canvas.block_stop:
        stop = canvas.lookahead_stop(state.pipeline, state.num_canvas_outputs)
        _set_block_stop(canvas, state.pipeline.window, _view_until(cursor, draws, stop))
    leave_one_out = _leave_one_out(cursor, logits, backend)
    return _view_until(cursor, draws, canvas.block_stop, leave_one_out)


def _set_block_stop(canvas: Canvas, window: WindowPolicy | None, view: StepView) -> None:
    """Decide how long the block is that begins with this view of the positions ahead."""
    length = view.stop - view.start
    if window is not None and len(view.positions):
        length = min(max(window.length(view), 1), length)
        # a block without a masked position would make no step
        length = max(length, int(view.positions[0]) - view.start + 1)
    canvas.block_stop = canvas.block_start + length


def _view_until(
    cursor: CanvasCursor, draws: PositionDraws, stop: int, leave_one_out: Floats | None = None
) -> StepView:
    """Return the view of the positions from the block's start to `stop`."""
    state, canvas = cursor.state, cursor.canvas
    start = canvas.block_start
    inside = (draws.positions >= start) & (draws.positions < min(stop, canvas.text_stop))
    inside &= canvas.masked[draws.positions - canvas.start]
    masked = draws.only(inside)
    block_p = None
    if draws.best_p is not None:
        block_p = np.zeros(stop - start)
        read = (draws.positions >= start) & (draws.positions < stop)
        block_p[draws.positions[read] - start] = draws.best_p[read]
    ends = np.array([*state.stop_token_ids], np.int64)
    return StepView(
        positions=masked.positions,
        tokens=masked.tokens,
        p=masked.p,
        is_end=(masked.tokens[:, None] == ends).any(axis=1),
        start=start,
        stop=stop,
        block_tokens=canvas.tokens(start, stop),
        step=canvas.block_step,
        noise_key=state.settings.noise_key,
        p2=masked.p2,
        entropy=masked.entropy,
        top=masked.top,
        block_p=block_p,
        leave_one_out=leave_one_out,
    )


def _leave_one_out(cursor: CanvasCursor, logits: Tensor, backend: KernelBackend) -> Floats | None:
    """Return the leave-one-out probabilities of the block's unmasked tokens; nan elsewhere."""
    canvas, index = cursor.canvas, cursor.fed.leave_one_out
    if not cursor.state.pipeline.revises:
        return None
    probs = np.full(canvas.block_stop - canvas.block_start, np.nan)
    if index is not None:
        tokens = canvas.ids[index.positions - canvas.start]
        rows = index.rows + cursor.offset
        at = index.positions - canvas.block_start
        probs[at] = token_probs(logits, rows, tokens, backend=backend)
    return probs


def _with_bias(
    cursors: Sequence[CanvasCursor],
    jobs: Sequence[DrawJob],
    views: Sequence[StepView],
    logits: Tensor,
    backend: KernelBackend,
) -> list[Drawn]:
    """Draw again where a scorer adds a bias; return the views and what they were drawn from."""
    drawn = [(view, logits, job) for view, job in zip(views, jobs, strict=True)]
    biases: dict[int, LogitBias] = {}
    for i, (cursor, view) in enumerate(zip(cursors, views, strict=True)):
        bias = _bias(cursor, view)
        if bias is not None and len(bias.rows):
            biases[i] = bias
    if not biases:
        return drawn
    positions = [views[i].positions for i in biases]
    scores, moved = biased_logits(
        logits, [jobs[i] for i in biases], positions, list(biases.values())
    )
    for i, job, draws in zip(biases, moved, draw(scores, moved, backend=backend), strict=True):
        view = _view_until(cursors[i], draws, views[i].stop, views[i].leave_one_out)
        drawn[i] = view, scores, job
    return drawn


def _bias(cursor: CanvasCursor, view: StepView) -> LogitBias | None:
    """Return what the scorer adds to the logits, and keep its memory in the canvas."""
    scorer, canvas = cursor.state.pipeline.scorer, cursor.canvas
    if scorer is None or not len(view.positions):
        return None
    selector_memory, memory = canvas.memories
    bias = scorer.bias(view, memory)
    canvas.memories = (selector_memory, bias.memory)
    return bias


def _constrain(
    cursors: Sequence[CanvasCursor], drawn: Sequence[Drawn], backend: KernelBackend
) -> tuple[Sequence[CanvasCursor], list[StepView], list[ConstrainedDraws | None]]:
    """Return the cursors, their views, and what constraints allow of them."""
    views = [view for view, _, _ in drawn]
    allowed: list[ConstrainedDraws | None] = [None] * len(drawn)
    jobs: dict[ConstraintMethod | None, dict[int, LookaheadJob]] = {}  # by method, then sequence
    for i, (cursor, (view, scores, job)) in enumerate(zip(cursors, drawn, strict=True)):
        state = cursor.state
        if state.constraint is not None and not state.fault:
            literals = state.pipeline.scaffold is not None
            own = jobs.setdefault(state.pipeline.constraint, {})
            own[i] = LookaheadJob(
                state.constraint, cursor.canvas, view, scores, job, literals=literals
            )
    for method, each in jobs.items():
        constrain = constrain_draws if method is None else method.constrain
        for i, found in zip(each, constrain(list(each.values()), backend=backend), strict=True):
            if isinstance(found, str):
                cursors[i].state.fault = found
            else:
                views[i], allowed[i] = found.view, found
    return cursors, views, allowed


def _unmask(cursor: CanvasCursor, view: StepView, allowed: ConstrainedDraws | None) -> Ints:
    """Let the pipeline decide; return the positions that were unmasked."""
    state, canvas, context = cursor.state, cursor.canvas, cursor.context
    if state.fault:
        return np.zeros(0, np.int64)
    scores = unmask(canvas, state.pipeline, view, context, allowed)
    p = state.progress.p
    if state.pipeline.cache is not None:
        p = p.copy() if len(p) else np.zeros(len(canvas.ids))
        p[view.positions - canvas.start] = view.p
    pending = None
    if state.pipeline.verifier is not None:
        pending = _pending(view, scores, None if allowed is None else allowed.literal)
    if finish_blocks(canvas, state.pipeline, context):
        pending = None
    return _adopt(state, canvas, pending, p)


def _pending(view: StepView, scores: Floats, literal: Bools | None) -> PendingDraws:
    """Return the step's draws in the order in which drafts use them, and its literals."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > -np.inf]
    literals = None
    if literal is not None:
        literals = LiteralDraws(view.positions, view.tokens, view.p, literal)
    return PendingDraws(view.positions[order], view.tokens[order], view.is_end[order], literals)


def _adopt(state: DiffusionState, canvas: Canvas, pending: PendingDraws | None, p: Floats) -> Ints:
    """Make a canvas the sequence's own, as its next step; return the positions unmasked by it."""
    progress = state.progress
    unmasked = np.flatnonzero(canvas.unmasked_in == state.next_step) + canvas.start
    state.progress = replace(
        progress,
        canvas=canvas,
        pending=pending,
        pass_of_step=(*progress.pass_of_step, progress.passes),
        newly_unmasked=unmasked,
        p=p,
    )
    return unmasked


def _move_to_draft(cursor: CanvasCursor) -> bool:
    """Return whether a later one of the fed canvases equals the new canvas; point at it."""
    state = cursor.state
    if state.fault or state.progress.pending is None:
        return False
    branch = matching_draft(state.canvas, cursor.fed.canvases, cursor.branch)
    if branch is None:
        return False
    cursor.branch = branch
    state.num_accepted += 1
    return True


def matching_draft(canvas: Canvas, canvases: Sequence[Canvas], after: int) -> int | None:
    """Return the index of the first canvas behind `after` with the same input, if any."""
    later = range(after + 1, len(canvases))
    return next((i for i in later if canvases[i].same_input(canvas)), None)


def _note_logprobs(
    unmasked: Sequence[tuple[CanvasCursor, Ints]], logits: Tensor, backend: KernelBackend
) -> None:
    """Store the model's logprobs of the tokens just unmasked, for requests that ask for them."""
    rows: list[int] = []
    asked: list[tuple[Canvas, int, int]] = []
    for cursor, positions in unmasked:
        k, canvas, index = cursor.state.num_logprobs, cursor.state.canvas, cursor.logits_index
        if k is not None:
            rows += index.rows[np.searchsorted(index.positions, positions)].tolist()
            asked += [(canvas, position, k) for position in positions.tolist()]
    tokens = [int(canvas.ids[position - canvas.start]) for canvas, position, _ in asked]
    ks = [k for _, _, k in asked]
    entries = logprobs_of(logits, rows, tokens, ks, backend=backend)
    for (canvas, position, _), entry in zip(asked, entries, strict=True):
        canvas.logprobs[position] = entry
