"""Drafts of a canvas, and which of them came true.

A draft is the canvas that the next steps would leave if what is drawn now were drawn again: the
certain canvas with 1, 2, .. more of its holes filled, the best-scored first. All are fed in one
pass. If a step makes of the certain canvas exactly what a draft shows, the draft's logits are those
of the next pass, and the walk goes on from there. Law: tokens and steps are those of one canvas a
pass, for any step map that is a function of the canvas (step.py); passes are never more.

Source: FreeDave, arXiv:2510.00294, algorithm 1. Differences: equality instead of inclusion, so
every rule keeps its own steps; sampling is covered, because noise is a function of the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.decoder import Forward
from plait.decoders.diffusion import step
from plait.decoders.diffusion.canvas import Canvas, LiteralDraws, PendingDraws
from plait.decoders.diffusion.constraints.canvas_constraint import (
    CanvasConstraint,
    ConstrainedDraws,
)
from plait.decoders.diffusion.draws import DrawJob, position_states
from plait.decoders.diffusion.protocols import Bools, Floats, Ints, Scaffold, StepView
from plait.decoders.diffusion.state import DiffusionState, own_tokens
from plait.decoders.diffusion.step_input import PRECEDING_ROW, LogitsIndex, StepInput
from plait.decoders.sampling.state import SamplingState

DRAFTED = -1  # the step of a token that no step has settled


def guess_of(view: StepView, scores: Floats, literal: Bools | None) -> PendingDraws:
    """Return the draws of a step in the order in which drafts fill them, and its literals."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > -np.inf]
    literals = None if literal is None else LiteralDraws(view.holes, view.tokens, view.p, literal)
    return PendingDraws(view.holes[order], view.tokens[order], view.is_end[order], literals)


def drafts_of(
    canvas: Canvas,
    guess: PendingDraws,
    count: int,
    guard: CanvasConstraint | None,
    scaffold: Scaffold | None = None,
) -> list[Canvas]:
    """Return the canvas and up to count drafts of it, each one hole further.

    A draft without an open hole would tell nothing, so there is none; nor is there one that a
    constraint makes new holes of, whose rows nobody reads.
    """
    made = [canvas]
    for i, position in enumerate(guess.positions.tolist()):
        if len(made) > count:
            break
        last = made[-1]
        if not last.hole[position - last.start] or position >= last.reach:
            continue
        draft = last.fork()
        at = slice(i, i + 1)
        draft.settle(guess.positions[at], guess.tokens[at], guess.is_end[at], DRAFTED)
        _place(draft, guess.literals, scaffold)
        if guard is not None:
            guard.close(draft, canvas.end, DRAFTED)
        has_more = len(draft.open_holes(canvas.begin, canvas.end)) > 0
        if not has_more or (draft.hole & ~canvas.hole).any():
            break
        made.append(draft)
    return made


def _place(draft: Canvas, literals: LiteralDraws | None, scaffold: Scaffold | None) -> None:
    """Settle the literals that the draft's step would settle if the draws were the same."""
    if literals is None or scaffold is None:
        return
    is_open = draft.hole[literals.positions - draft.start]
    p = np.where(is_open, literals.p, 1.0)
    at = is_open & scaffold.place(literals.literal, p)
    positions = literals.positions[at]
    draft.settle(positions, literals.tokens[at], np.zeros(len(positions), np.bool_), DRAFTED)


def matching_draft(canvas: Canvas, canvases: Sequence[Canvas], after: int) -> int | None:
    """Return which later one of the canvases that were fed this one equals, if any."""
    return next((i for i in range(after + 1, len(canvases)) if canvases[i].shows_as(canvas)), None)


@dataclass(slots=True)
class CanvasCursor:
    """One sequence's way through the canvases that a pass has fed."""

    state: DiffusionState
    plan: StepInput
    offset: int  # of the sequence's rows in the logits
    anchor: int  # row of the logits that holds the kept one
    canvas: Canvas  # the one that is stepped now
    branch: int = 0  # which of the canvases fed equals it

    @property
    def reading(self) -> LogitsIndex:
        """Positions whose laws are read now, and their rows of the logits."""
        reading = self.plan.readings[self.branch]
        rows = np.where(reading.rows == PRECEDING_ROW, self.anchor, reading.rows + self.offset)
        return LogitsIndex(reading.positions, rows)


def begin(states: Sequence[DiffusionState], forward: Forward) -> tuple[list[CanvasCursor], Tensor]:
    """Take note of the pass; return a walk for each canvas, and the logits with all kept rows."""
    kept: list[Tensor] = []
    walks = []
    for state, offset in zip(states, forward.offsets[:-1], strict=True):
        plan = state.plan
        if plan is None or not plan.readings:
            continue
        if plan.reads_anchor:
            state.anchor = forward.logits[offset].clone()
        walk = CanvasCursor(state, plan, offset, len(forward.logits) + len(kept), state.canvas)
        if (plan.readings[0].rows == PRECEDING_ROW).any():
            assert state.anchor is not None
            kept.append(state.anchor)
        walks.append(walk)
        state.num_drafted += len(plan.canvases) - 1
        _note_pass(state, plan)
    return walks, torch.cat([forward.logits, torch.stack(kept)]) if kept else forward.logits


def _note_pass(state: DiffusionState, plan: StepInput) -> None:
    """Count the pass, and remember from where it could be repeated after an eviction."""
    progress = state.progress
    age = progress.age + 1
    if state.chain.cache is not None and len(plan.proposal.token_ids) == len(state.canvas.ids):
        state.refreshed, age = progress, 1
    state.progress = replace(progress, passes=progress.passes + 1, age=age)


def job(walk: CanvasCursor) -> DrawJob:
    """Fork the canvas for a step, and say what is to be drawn for it."""
    state = walk.state
    walk.canvas = canvas = state.canvas.fork()
    reading = walk.reading
    made: list[SamplingState] = []
    if not state.law.is_plain:
        text = [*state.text[: canvas.start], *canvas.seen(canvas.start, canvas.stop).tolist()]
        made = position_states(
            state.sampling, text, state.answer[0], reading.positions, own_tokens(state)
        )
    made_job = DrawJob(state.law, reading.positions, reading.rows, state.chain.needs, made)
    if state.guard is None:
        return made_job
    stop = step.outlook(canvas, state.chain, state.room)
    hole, bitmask = state.guard.bitmask(canvas, stop)
    return replace(made_job, bitmask=bitmask, masked=int(np.searchsorted(reading.positions, hole)))


def probe(walk: CanvasCursor) -> Ints | None:
    """Settle what is forced but waited for rows that tell its logprobs.

    Returns the positions settled; None if there are none, and the pass is for a step.
    """
    state = walk.state
    if state.guard is None or state.law.params.logprobs is None:
        return None
    canvas = state.canvas.fork()
    is_finished = step.go_on(canvas, state.chain, _scene(walk))
    if not is_finished and canvas.shows_as(state.canvas):
        return None
    return _adopt(state, canvas, None, state.progress.p)


def _scene(walk: CanvasCursor) -> step.StepContext:
    state = walk.state
    is_priced = state.law.params.logprobs is not None
    return step.StepContext(
        state.room,
        len(state.progress.pass_of) + 1,
        state.guard,
        walk.reading.positions if is_priced else None,
    )


def take_step(walk: CanvasCursor, view: StepView, ruling: ConstrainedDraws | None) -> Ints:
    """Let the chain decide; return the positions that were settled."""
    state, canvas = walk.state, walk.canvas
    progress = state.progress
    if state.fault:
        return np.zeros(0, np.int64)
    number = len(progress.pass_of) + 1
    scores = step.settle(canvas, state.chain, view, number, ruling)
    p = progress.p
    if state.chain.cache is not None:
        p = progress.p.copy() if len(progress.p) else np.zeros(len(canvas.ids))
        p[view.holes - canvas.start] = view.p
    literal = None if ruling is None else ruling.literal
    guess = guess_of(view, scores, literal) if state.chain.verifier is not None else None
    if step.go_on(canvas, state.chain, _scene(walk)):
        guess = None
    return _adopt(state, canvas, guess, p)


def _adopt(state: DiffusionState, canvas: Canvas, guess: PendingDraws | None, p: Floats) -> Ints:
    """Go on with a canvas that a pass has led to; return the positions settled."""
    progress = state.progress
    settled = np.flatnonzero(canvas.settled_in == len(progress.pass_of) + 1) + canvas.start
    state.progress = replace(
        progress,
        canvas=canvas,
        guess=guess,
        pass_of=(*progress.pass_of, progress.passes),
        fresh=settled,
        p=p,
    )
    return settled


def goes_on(walk: CanvasCursor) -> bool:
    """Tell whether the new canvas is one of those that were fed, and turn to it."""
    state = walk.state
    if state.fault or state.progress.guess is None:
        return False
    branch = matching_draft(state.canvas, walk.plan.canvases, walk.branch)
    if branch is None:
        return False
    walk.branch = branch
    state.num_accepted += 1
    return True
