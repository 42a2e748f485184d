"""The state of one sequence of a diffusion model, and the canvases it goes through.

The state is derived from the engine's text and can be built again from it; a canvas only adds work
in progress. Block attention: a canvas is one block of b positions at a multiple of b, which begins
with the committed tokens in it. Full attention: the canvas is the whole text; it grows when it is
full without an end. Infill: one canvas, with given text behind the masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from plait.decoders.contract.decoder import DecodeRequest, FinishReason, Outcome
from plait.decoders.contract.text import Text
from plait.decoders.diffusion.canvas import GIVEN, Canvas, PendingDraws
from plait.decoders.diffusion.constraints.canvas_constraint import CanvasConstraint
from plait.decoders.diffusion.draws import DrawSettings, draw_settings
from plait.decoders.diffusion.pipeline import UnmaskingPipeline
from plait.decoders.diffusion.protocols import Floats, Ints
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.step_input import StepInput
from plait.decoders.sampling.state import SamplingState


@dataclass(frozen=True, slots=True)
class CanvasProgress:
    """All that a step changes; a value, so that a preempted sequence can return to one."""

    canvas: Canvas  # never changed in place once it is here
    pending: PendingDraws | None = None  # for drafts; None in the first pass over a block
    passes: int = 0  # forward passes whose logits were used
    pass_of_step: tuple[int, ...] = ()
    passes_since_refresh: int = 0  # full attention: since all positions were computed; 0: never
    newly_unmasked: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # by the last step
    p: Floats = field(default_factory=lambda: np.zeros(0))  # [n] when last drawn; 0: never


@dataclass(slots=True)
class DiffusionState:
    """One sequence; everything but the work in progress is derived from request.text."""

    request: DecodeRequest
    pipeline: UnmaskingPipeline
    sampling: SamplingState  # its counts are those of the text before the canvas
    settings: DrawSettings
    output_positions: Sequence[int]  # of the output's tokens, rising
    progress: CanvasProgress
    is_infill: bool = False
    constraint: CanvasConstraint | None = None
    step_input: StepInput | None = None  # what was proposed last
    preceding_logits: Tensor | None = None  # [vocab] of the row before the canvas (models with a
    # shift); a function of the text before the canvas, never changed in place
    last_refresh: CanvasProgress | None = None  # before the last pass of all positions
    emitted_passes: list[int] = field(default_factory=list)  # pass that unmasked each output token
    emitted_steps: list[int] = field(default_factory=list)  # its step; steps may share a pass
    num_drafted: int = 0  # canvases
    num_accepted: int = 0  # canvases
    num_forced: int = 0  # output tokens that the constraint left no alternative to
    fault: str = ""

    @property
    def text(self) -> Text:
        """The engine's text of this sequence."""
        return self.request.text

    @property
    def canvas(self) -> Canvas:
        """The canvas as it is."""
        return self.progress.canvas

    @property
    def next_step(self) -> int:
        """The number of the next step, from 1."""
        return len(self.progress.pass_of_step) + 1

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens that end the text; none in an infill."""
        return frozenset() if self.is_infill else self.request.stop_token_ids

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are reported with each token; None: no logprobs are."""
        asked = self.request.sampling.logprobs
        return 0 if asked is None and self.request.search.logprobs else asked

    @property
    def num_canvas_outputs(self) -> int:
        """Positions of the canvas that belong to the output."""
        canvas = self.canvas
        return min(canvas.stop, canvas.limit) - max(canvas.start, self.output_positions[0])


def start(
    request: DecodeRequest, pipeline: UnmaskingPipeline, spec: DiffusionSpec
) -> DiffusionState:
    """Return the state of a sequence whose text may have output already."""
    prompt, ids, positions = _layout(request)
    is_infill = bool(request.extras.holes or request.extras.suffix_token_ids)
    text, num_output = request.text, request.text.num_output
    canvas = _canvas(0, [], 0, 0)
    if positions and is_infill:
        canvas = _infill_canvas(ids, positions, text.output)
    elif positions:
        canvas = _first_canvas(text, pipeline, spec, positions[-1] + 1)
    counted = max(canvas.start - len(ids), 0) if not is_infill else 0
    sampling = SamplingState(
        request.sampling, Text(prompt, text.noise, text.output[:counted]), request.stop_token_ids
    )
    sampling.text = Text(ids[: positions[0]], text.noise) if is_infill and positions else text
    given = [GIVEN] * num_output
    return DiffusionState(
        request,
        pipeline,
        sampling,
        draw_settings(sampling),
        positions,
        CanvasProgress(canvas),
        is_infill,
        emitted_passes=given,
        emitted_steps=list(given),
    )


def copied(state: DiffusionState, text: Text) -> DiffusionState:
    """Return an independent state with the same work in progress, for a text of equal tokens.

    Its keys and values are its own: with full attention all positions are computed again. Draws for
    drafts are dropped, because the text's noise may be another.
    """
    sampling = copy(state.sampling)
    sampling.text = state.sampling.text.with_noise(text.noise) if state.is_infill else text
    sampling.counts = None if sampling.counts is None else sampling.counts.copy()
    progress = replace(
        state.progress, canvas=state.canvas.fork(), pending=None, passes_since_refresh=0
    )
    return replace(
        state,
        request=replace(state.request, text=text),
        sampling=sampling,
        settings=replace(state.settings, noise_key=draw_settings(sampling).noise_key),
        progress=progress,
        constraint=None if state.constraint is None else state.constraint.fork(),
        step_input=None,
        last_refresh=None,
        emitted_passes=list(state.emitted_passes),
        emitted_steps=list(state.emitted_steps),
    )


def inherit(state: DiffusionState, old: DiffusionState, num_shared: int) -> None:
    """Give a state that was built again what does not follow from its text: counts of work.

    Args:
        state: to be changed.
        old: of a text with the same beginning.
        num_shared: tokens of that beginning.
    """
    kept = max(num_shared - state.text.prompt_length, 0)
    state.emitted_passes[:kept] = old.emitted_passes[:kept]
    state.emitted_steps[:kept] = old.emitted_steps[:kept]
    state.num_drafted, state.num_accepted = old.num_drafted, old.num_accepted
    state.num_forced = old.num_forced
    passes, pass_of_step = old.progress.passes, old.progress.pass_of_step
    state.progress = replace(state.progress, passes=passes, pass_of_step=pass_of_step)
    if state.canvas.start == old.canvas.start <= num_shared:
        state.preceding_logits = old.preceding_logits


def go_to_next_canvas(state: DiffusionState, spec: DiffusionSpec) -> None:
    """Begin the canvas that follows one without masked positions."""
    canvas = _next_canvas(state, spec)
    state.preceding_logits = state.last_refresh = None
    state.progress = replace(
        state.progress, canvas=canvas, pending=None, passes_since_refresh=0, p=np.zeros(0)
    )


def unmasked_outputs(state: DiffusionState) -> list[int]:
    """Return the output tokens that are unmasked in the canvas."""
    canvas, first = state.canvas, max(state.canvas.start - state.output_positions[0], 0)
    at = [q - canvas.start for q in state.output_positions[first:] if q < canvas.stop]
    return [int(canvas.ids[i]) for i in at if not canvas.masked[i]]


def emit(state: DiffusionState) -> Outcome:
    """Append to the text, and return, the unmasked prefix that no method can mask again."""
    canvas, positions, emit = state.canvas, state.output_positions, list[int]()
    bound = canvas.block_start if state.pipeline.revises else canvas.stop
    finish: FinishReason | None = None
    stop_token = None
    logprobs = []
    for position in positions[state.text.num_output :]:
        at = position - canvas.start
        if position >= canvas.emit_stop:  # a stopper or a constraint has ended the text
            finish = "stop"
        if finish or position >= bound or canvas.masked[at]:
            break
        token = int(canvas.ids[at])
        if canvas.is_end[at]:
            finish, stop_token = "stop", token
            break
        emit.append(token)
        step = int(canvas.unmasked_in[at])
        state.emitted_steps.append(step)
        state.emitted_passes.append(state.progress.pass_of_step[step - 1] if step != GIVEN else 0)
        state.num_forced += bool(canvas.forced[at])
        logprobs += [canvas.logprobs[position]] if position in canvas.logprobs else []
    state.text.extend(emit)
    if state.text.num_output == len(positions):
        finish = "length" if canvas.constraint_end is None else "stop"
    return Outcome(emit, finish=finish, stop_token=stop_token, logprobs=logprobs)


def report_of(state: DiffusionState) -> Mapping[str, Any]:
    """Return the sequence's part of the `decoding` object."""
    pipeline = state.pipeline
    report: dict[str, Any] = {
        "steps": state.emitted_passes,
        "unmasker": list(pipeline.names.values()),
        "attention": pipeline.attention,
        "block_size": pipeline.block_size,
    }
    if state.constraint is not None:
        report["forced"] = state.num_forced
    if pipeline.verifier is not None:
        report["drafted"] = {pipeline.names["verifier"]: state.num_drafted}
        report["accepted"] = {pipeline.names["verifier"]: state.num_accepted}
    return report


def _layout(request: DecodeRequest) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Return the prompt proper, all ids of the text without its output, and output positions."""
    prompt, extras = request.text.prompt, request.extras
    positions: Sequence[int] = range(len(prompt), len(prompt) + request.max_tokens)
    if extras.holes:
        positions = [p for start, stop in extras.holes for p in range(start, stop)]
        masked = set(positions)
        return [t for i, t in enumerate(prompt) if i not in masked], prompt, positions
    if extras.suffix_token_ids:
        return prompt, [*prompt, *[0] * request.max_tokens, *extras.suffix_token_ids], positions
    return prompt, prompt, positions


def _infill_canvas(ids: Sequence[int], positions: Sequence[int], output: Sequence[int]) -> Canvas:
    """Return the canvas of an infill; its first output positions hold the output so far."""
    filled = np.array(ids, np.int64)
    filled[list(positions[: len(output)])] = output
    masked = np.zeros(len(ids), np.bool_)
    masked[list(positions[len(output) :])] = True
    return Canvas(0, filled, masked, len(ids), positions[min(len(output), len(positions) - 1)])


def _first_canvas(
    text: Text, pipeline: UnmaskingPipeline, spec: DiffusionSpec, limit: int
) -> Canvas:
    """Return the canvas in which a text goes on; limit: one past its last output position."""
    if pipeline.attention == "block":
        start = len(text) - len(text) % pipeline.block_size
        return _canvas(start, text[start:], start + pipeline.block_size, limit)
    growth = _growth(pipeline, spec)
    stop = text.prompt_length + (text.num_output // growth + 1) * growth
    canvas = _canvas(0, text.token_ids, max(min(limit, stop), len(text)), limit)
    canvas.block_start = len(text)
    return canvas


def _next_canvas(state: DiffusionState, spec: DiffusionSpec) -> Canvas:
    """Return the following canvas; with block attention, count the tokens of the old one."""
    old = state.canvas
    if state.pipeline.attention == "block":
        for token in unmasked_outputs(state):
            state.sampling.observe(token)
        return _canvas(old.stop, [], old.stop + state.pipeline.block_size, old.limit)
    stop = min(old.limit, old.stop + _growth(state.pipeline, spec))
    canvas = _canvas(0, old.ids.tolist(), stop, old.limit)
    canvas.block_start = old.stop
    return canvas


def _canvas(start: int, tokens: Sequence[int], stop: int, limit: int) -> Canvas:
    """Return positions start..stop-1 that begin with these tokens; the others are masked."""
    ids = np.zeros(stop - start, np.int64)
    ids[: len(tokens)] = tokens
    return Canvas(start, ids, np.arange(stop - start) >= len(tokens), limit, start)


def _growth(pipeline: UnmaskingPipeline, spec: DiffusionSpec) -> int:
    """Return the positions that a canvas with full attention gets at a time: whole blocks."""
    size = pipeline.block_size
    return -(-spec.canvas // size) * size
