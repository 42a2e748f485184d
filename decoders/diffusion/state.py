"""What the diffusion host remembers of one sequence, and the canvases it goes through.

Block attention: a canvas is one block of b positions at a multiple of b, headed by what is
committed of it. Full attention: the canvas is the whole text; it grows when it is full without an
end. An infill is one canvas whose text behind the holes is settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """All that a step changes; a value, so that an eviction can go back to one."""

    canvas: Canvas  # never changed in place once it is here
    guess: PendingDraws | None = None  # what may come next; None in the first pass over a block
    passes: int = 0  # forward passes whose logits were used
    pass_of: tuple[int, ...] = ()  # the pass of each step
    age: int = 0  # full attention: passes since all positions were computed; 0: none are
    fresh: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # settled by the last pass
    p: Floats = field(default_factory=lambda: np.zeros(0))  # [n] when last drawn; 0: never


@dataclass(slots=True)
class DiffusionState:
    """One sequence. `answer` are the positions of its tokens, rising."""

    chain: UnmaskingPipeline
    sampling: SamplingState
    law: DrawSettings
    ends: frozenset[int]  # tokens that end the text; none in an infill
    text: Text  # the engine's: prompt and emitted tokens
    answer: Sequence[int]
    progress: CanvasProgress
    is_infill: bool = False
    plan: StepInput | None = None  # what was proposed last
    anchor: Tensor | None = None  # [vocab] the logits of the row before the canvas (shift)
    refreshed: CanvasProgress | None = None  # before the last pass that computed all positions
    steps: list[int] = field(default_factory=list)  # the pass that settled each emitted token
    order: list[int] = field(default_factory=list)  # its step; several may share a pass
    num_drafted: int = 0
    num_accepted: int = 0
    guard: CanvasConstraint | None = None  # under a constraint
    num_forced: int = 0  # emitted tokens that it left no alternative to
    fault: str = ""

    @property
    def canvas(self) -> Canvas:
        """The canvas as it stands."""
        return self.progress.canvas

    @property
    def num_emitted(self) -> int:
        """Answer tokens that have left."""
        return len(self.steps)

    @property
    def room(self) -> int:
        """Positions of the canvas that are the answer's."""
        return min(self.canvas.stop, self.canvas.limit) - max(self.canvas.start, self.answer[0])


def start(request: DecodeRequest, chain: UnmaskingPipeline, spec: DiffusionSpec) -> DiffusionState:
    """Return the state of a new sequence."""
    prompt, ids, answer = _text(request)
    is_infill = len(ids) > answer[-1] + 1 if answer else False
    is_infill = is_infill or bool(request.extras.holes)
    sampling = SamplingState(
        request.sampling, Text(prompt, request.text.noise), request.stop_token_ids
    )
    if answer:  # positions count from the text's start, also where an infill's prompt goes on
        sampling.text = Text(ids[: answer[0]], request.text.noise)
    state = DiffusionState(
        chain,
        sampling,
        draw_settings(sampling),
        frozenset() if is_infill else request.stop_token_ids,
        request.text,
        answer,
        CanvasProgress(_nothing()),
        is_infill,
    )
    if answer and is_infill:
        hole = np.zeros(len(ids), np.bool_)
        hole[list(answer)] = True
        canvas = Canvas(0, np.array(ids, np.int64), hole, len(ids), answer[0])
        state.progress = CanvasProgress(canvas)
    elif answer:
        state.progress = CanvasProgress(first_canvas(state, spec))
    return state


def first_canvas(state: DiffusionState, spec: DiffusionSpec) -> Canvas:
    """Return the first canvas of an answer that follows its prompt."""
    prompt, limit = state.text.token_ids, state.answer[-1] + 1
    if state.chain.attention == "block":
        begin = len(prompt) - len(prompt) % state.chain.block_size
        return _canvas(begin, prompt[begin:], begin + state.chain.block_size, limit)
    stop = min(limit, len(prompt) + _grown_by(state, spec))
    canvas = _canvas(0, prompt, stop, limit)
    canvas.begin = len(prompt)
    return canvas


def next_canvas(state: DiffusionState, spec: DiffusionSpec) -> Canvas:
    """Return the canvas that follows one without an open hole; a block is then behind us."""
    old = state.canvas
    if state.chain.attention == "block":
        for token in own_tokens(state):
            state.sampling.observe(token)
        return _canvas(old.stop, [], old.stop + state.chain.block_size, old.limit)
    stop = min(old.limit, old.stop + _grown_by(state, spec))
    canvas = _canvas(0, old.ids.tolist(), stop, old.limit)
    canvas.begin = old.stop
    return canvas


def _text(request: DecodeRequest) -> tuple[list[int], list[int], Sequence[int]]:
    """Return the prompt proper, all ids around the holes, and the holes' positions."""
    prompt, extras = list(request.text.prompt), request.extras
    answer: Sequence[int] = range(len(prompt), len(prompt) + request.max_tokens)
    if spans := extras.holes:
        answer = [position for start, stop in spans for position in range(start, stop)]
        holes = set(answer)
        return [t for i, t in enumerate(prompt) if i not in holes], prompt, answer
    if suffix := extras.suffix_token_ids:
        return prompt, [*prompt, *[0] * request.max_tokens, *suffix], answer
    return prompt, prompt, answer


def _canvas(start: int, settled: Sequence[int], stop: int, limit: int) -> Canvas:
    ids = np.zeros(stop - start, np.int64)
    ids[: len(settled)] = settled
    return Canvas(start, ids, np.arange(stop - start) >= len(settled), limit, start)


def _nothing() -> Canvas:
    return _canvas(0, [], 0, 0)


def _grown_by(state: DiffusionState, spec: DiffusionSpec) -> int:
    """Positions that a canvas with full attention gets at a time: whole blocks."""
    size = state.chain.block_size
    return -(-spec.canvas // size) * size


def report_of(state: DiffusionState) -> Mapping[str, Any]:
    """Return the sequence's share of the `decoding` object."""
    report: dict[str, Any] = {
        "steps": state.steps,
        "unmasker": list(state.chain.names.values()),
        "attention": state.chain.attention,
        "block_size": state.chain.block_size,
    }
    if state.guard is not None:
        report["forced"] = state.num_forced
    if state.chain.verifier is not None:
        report["drafted"] = {state.chain.names["verifier"]: state.num_drafted}
        report["accepted"] = {state.chain.names["verifier"]: state.num_accepted}
    return report


def own_tokens(state: DiffusionState) -> list[int]:
    """Return the tokens of the answer that are settled in the canvas."""
    canvas, first = state.canvas, max(state.canvas.start - state.answer[0], 0)
    at = [q - canvas.start for q in state.answer[first:] if q < canvas.stop]
    return [int(canvas.ids[i]) for i in at if not canvas.hole[i]]


def emit(state: DiffusionState) -> Outcome:
    """Emit the settled prefix that stands for good."""
    canvas, answer, emit = state.canvas, state.answer, []
    bound = canvas.begin if state.chain.revises else canvas.stop
    finish: FinishReason | None = None
    stop_token = None
    logprobs = []
    for position in answer[state.num_emitted :]:
        at = position - canvas.start
        if position >= canvas.edge:  # a stopper has ended the text, or a constraint
            finish = "stop"
        if finish or position >= bound or canvas.hole[at]:
            break
        token = int(canvas.ids[at])
        if canvas.is_end[at]:
            finish, stop_token = "stop", token
            break
        emit.append(token)
        step = int(canvas.settled_in[at])
        state.order.append(step)
        state.steps.append(state.progress.pass_of[step - 1] if step != GIVEN else 0)
        state.num_forced += bool(canvas.forced[at])
        logprobs += [canvas.logprobs[position]] if position in canvas.logprobs else []
        state.text.append(token)
    if state.num_emitted == len(answer):
        finish = "length" if canvas.over is None else "stop"
    return Outcome(emit, finish=finish, stop_token=stop_token, logprobs=logprobs)
