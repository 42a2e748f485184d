"""Drafts of a canvas, and which of them came true.

A draft is the canvas that the next steps would leave if what is drawn now were drawn again: the
certain canvas with 1, 2, .. more of its holes filled, the best-scored first. All are fed in one
pass. If a step makes of the certain canvas exactly what a draft shows, the draft's logits are those
of the next pass, and the walk goes on from there. Law: tokens and steps are those of one canvas a
pass, for any step map that is a function of the canvas (settling.py); passes are never more.

Source: FreeDave, arXiv:2510.00294, algorithm 1. Differences: equality instead of inclusion, so
every rule keeps its own steps; sampling is covered, because noise is a function of the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.step import Bools, Floats, Ints, StepView

DRAFTED = -1  # the step of a token that no step has settled


@dataclass(frozen=True, slots=True)
class Guess:
    """What the last step drew for holes that it left open; best-scored first."""

    positions: Ints
    tokens: Ints
    is_end: Bools


def guess_of(view: StepView, scores: Floats) -> Guess:
    """Return the draws of a step in the order in which drafts fill them."""
    order = np.argsort(-scores, kind="stable")
    return Guess(view.holes[order], view.tokens[order], view.is_end[order])


def drafts_of(canvas: Canvas, guess: Guess, count: int) -> list[Canvas]:
    """Return the canvas and up to count drafts of it, each one hole further.

    A draft without an open hole would tell nothing, so there is none.
    """
    open_holes = canvas.open_holes(canvas.begin, canvas.end)
    left = np.flatnonzero(np.isin(guess.positions, open_holes))
    made = [canvas]
    for i in left[: max(min(count, len(left) - 1), 0)]:
        draft = made[-1].fork()
        at = slice(i, i + 1)
        draft.settle(guess.positions[at], guess.tokens[at], guess.is_end[at], DRAFTED)
        if not len(draft.open_holes(canvas.begin, canvas.end)):
            break
        made.append(draft)
    return made


def proved(canvas: Canvas, canvases: Sequence[Canvas], after: int) -> int | None:
    """Return which later one of the canvases that were fed this one equals, if any."""
    return next((i for i in range(after + 1, len(canvases)) if canvases[i].shows_as(canvas)), None)
