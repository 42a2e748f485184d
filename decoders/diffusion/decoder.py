"""The diffusion decoder: canvases whose positions are unmasked in any order, emitted from the left.

Per forward pass and sequence: draw a token at every masked position that was read, let the
pipeline's methods decide which are unmasked (unmasking.py), and while the new canvas is one of the
drafts that were fed as well, continue with the draft's logits (step.py). Emitted is the unmasked
prefix that no method may mask again, up to max_tokens or the token that ends the text.

Law: the text is a function of the request alone (law 1): not of the batch, of drafts, of chunks or
of preemptions. Exact wherever a row's logits are a function of what the row sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from plait.decoders.contract.decoder import (
    DecodeRequest,
    DraftBudget,
    Forward,
    Outcome,
    Proposal,
    SequenceError,
)
from plait.decoders.contract.decoding import DiffusionMethods
from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.text import Text
from plait.decoders.diffusion import propose
from plait.decoders.diffusion import state as states_of
from plait.decoders.diffusion import step as steps
from plait.decoders.diffusion.canvas import GIVEN, Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import CanvasConstraint
from plait.decoders.diffusion.constraints.cfg_intersection import CfgIntersectionOptions
from plait.decoders.diffusion.constraints.infill import InfillConstraint, constrained_span
from plait.decoders.diffusion.constraints.intersection import CfgIntersection
from plait.decoders.diffusion.constraints.prefix_matcher import PrefixMatcher
from plait.decoders.diffusion.pipeline import (
    NEEDS_CONSTRAINT,
    UnmaskingConfig,
    UnmaskingPipeline,
    build_pipeline,
    check,
    from_methods,
)
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.state import DiffusionState
from plait.decoders.diffusion.unmasking import StepContext, finish_blocks
from plait.kernels.backend import KernelBackend
from plait.kernels.dispatch import cpu_backend

NO_FORM = "{} is for answers that a constraint gives a form."
NO_INFILL = "{} is for text that follows its prompt; text between takes cfg-intersection."
NO_FILLING = "No tokens in the holes make the text around them one that the form allows."
UNKNOWN_FILLING = (
    "No filling of the holes was found that makes the text around them one that the form allows; "
    "longer holes may help."
)
BETWEEN = CfgIntersection(CfgIntersectionOptions())
ILLEGAL = "The constraint refuses the text that the sequence has."


class DiffusionDecoder:
    """Runs the sequences of a masked diffusion model, each with its own methods."""

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
        self._pipelines: dict[UnmaskingConfig, UnmaskingPipeline] = {}

    def start(self, request: DecodeRequest) -> DiffusionState:
        """Return the state of a sequence with this text.

        Raises:
            MethodError: a method doesn't fit the weights, or lacks a file beside them; or a search
                wants alternatives, which diffusion models don't give.
        """
        if request.search.num_alternatives:
            raise MethodError("A diffusion model gives no alternatives.", "decoding.search")
        state = states_of.start(request, self._pipeline(request), self.spec)
        if request.constraint is not None and state.output_positions:
            self._constrain(state, request)
        needing = [state.pipeline.names.get(part) for part in NEEDS_CONSTRAINT]
        if request.constraint is None and any(needing):
            state.fault = NO_FORM.format(next(filter(None, needing)))
        return state

    def fork(self, state: DiffusionState, text: Text) -> DiffusionState:
        """Return an independent state for another text, which begins as the state's own does.

        With all of the state's tokens and no others, it keeps the work in progress.
        """
        if text.token_ids == state.text.token_ids or state.fault:
            return states_of.copied(state, text)
        return self._rebuilt(state, text)

    def truncate(self, state: DiffusionState, text: Text) -> DiffusionState:
        """Return the state for the state's own text, which has been cut; it is built again."""
        return self._rebuilt(state, text)

    def reweigh(self, state: DiffusionState, log_factors: Mapping[int, float]) -> None:
        """Refuse: positions are drawn together."""
        raise SequenceError("A canvas draws many positions at once, which no search can reweigh.")

    def attention_block_size(self, state: DiffusionState) -> int:
        """Return the block size, or 0 with full attention."""
        if state.fault or not state.output_positions:
            return 1  # the prompt is read once, and the sequence ends
        return state.pipeline.block_size if state.pipeline.attention == "block" else 0

    def propose(self, states: Sequence[DiffusionState], budget: DraftBudget) -> Sequence[Proposal]:
        """Feed each sequence's canvas; drafts of those that can use them share the budget."""
        drafting = sum(state.progress.pending is not None for state in states)
        share = budget.drafts // max(drafting, 1)
        inputs = [propose.step_input(state, self.spec, share) for state in states]
        for state, step_input in zip(states, inputs, strict=True):
            state.step_input = step_input
        return [step_input.proposal for step_input in inputs]

    def accept(self, states: Sequence[DiffusionState], forward: Forward) -> Sequence[Outcome]:
        """Make all steps that the pass allows on every canvas, and emit what is final."""
        steps.advance(states, forward, backend=self._backend)
        return [self._outcome(state) for state in states]

    def preempted(self, state: DiffusionState) -> None:
        """Return to the last canvas whose keys and values will all be computed again anyway."""
        if state.last_refresh is not None:
            state.progress = state.last_refresh

    def finish(self, state: DiffusionState) -> None:
        """Do nothing: a state holds no resources."""

    def report(self, state: DiffusionState) -> Mapping[str, Any]:
        """Return the pass that unmasked each token, the methods, and counts of drafts."""
        return states_of.report_of(state)

    def _outcome(self, state: DiffusionState) -> Outcome:
        """Emit what is final, and begin the next canvas when this one is done."""
        if state.fault:
            return Outcome(fault=state.fault)
        if not state.output_positions:  # max_tokens 0: only the prompt was asked about
            return Outcome(finish="length")
        outcome = states_of.emit(state)
        while outcome.finish is None and state.canvas.block_start >= state.canvas.stop:
            states_of.go_to_next_canvas(state, self.spec)
            if state.constraint is not None:
                canvas, _ = _with_forced(state, state.next_step - 1)
                state.progress = replace(state.progress, canvas=canvas)
                outcome = _joined(outcome, states_of.emit(state))
        return outcome

    def _pipeline(self, request: DecodeRequest) -> UnmaskingPipeline:
        if request.methods is None:
            config = check({}, self.spec, request.extras)
        else:
            assert isinstance(request.methods, DiffusionMethods), "methods for another model"
            config = from_methods(request.methods)
        if config not in self._pipelines:
            self._pipelines[config] = build_pipeline(
                config,
                self.spec,
                folder=self._folder,
                delimiters=self._delimiters,
            )
        return self._pipelines[config]

    def _constrain(self, state: DiffusionState, request: DecodeRequest) -> None:
        """Attach the request's constraint, and fill what it forces in the first canvas."""
        if state.is_infill:
            self._constrain_infill(state, request)
            return
        assert request.constraint is not None
        if state.pipeline.constraint is not None:
            state.pipeline.constraint.check(request.constraint)
        stops, output = state.stop_token_ids, state.text.output
        matcher = PrefixMatcher(request.constraint, stops, self._vocab_size, output)
        state.constraint = CanvasConstraint(matcher, stops, state.output_positions[0])
        canvas, is_whole = _with_forced(state, GIVEN)
        if not is_whole:  # else the first pass comes to the same end, as every text needs one
            state.progress = replace(state.progress, canvas=canvas)

    def _constrain_infill(self, state: DiffusionState, request: DecodeRequest) -> None:
        """Attach the request's constraint to the text around its holes.

        Raises:
            MethodError: no filling of the holes is known that gives a legal text.
        """
        constraint, ids = request.constraint, state.canvas.ids.tolist()
        assert constraint is not None
        method = state.pipeline.constraint or BETWEEN
        if not isinstance(method, CfgIntersection):
            name = state.pipeline.names["constraint"]
            raise MethodError(NO_INFILL.format(name), "decoding.unmasker")
        method.check(constraint)
        state.pipeline = replace(state.pipeline, constraint=method)
        ends = {*self.spec.eos_ids, *request.stop_token_ids}
        span = constrained_span(constraint, ids, state.output_positions, ends)
        state.constraint = InfillConstraint(constraint, span, self._vocab_size)
        found = state.constraint.fill_gaps(state.canvas, state.canvas.stop, {}).exists
        if not found and state.text.num_output:
            state.fault = ILLEGAL
        elif not found:
            field = request.extras.infill_field or "infill"
            raise MethodError(NO_FILLING if found is False else UNKNOWN_FILLING, field)

    def _rebuilt(self, state: DiffusionState, text: Text) -> DiffusionState:
        """Build the state of a text again, which begins as the old state's text does."""
        constraint = state.request.constraint
        if state.constraint is not None:
            constraint = state.constraint.constraint_at(text.output)
        request = replace(state.request, text=text, constraint=constraint)
        rebuilt = self.start(request)
        states_of.inherit(rebuilt, state, text.num_shared(state.text))
        if state.fault or (state.constraint is not None and constraint is None):
            rebuilt.fault = state.fault or ILLEGAL
        return rebuilt


def _with_forced(state: DiffusionState, step: int) -> tuple[Canvas, bool]:
    """Return the canvas with what is forced at its start, and whether that finishes a block."""
    canvas = state.canvas.fork()
    fills = state.num_logprobs is None and state.pipeline.fills_forced
    fillable = None if fills else np.zeros(0, np.int64)
    context = StepContext(state.num_canvas_outputs, step, state.constraint, fillable)
    return canvas, finish_blocks(canvas, state.pipeline, context)


def _joined(first: Outcome, then: Outcome) -> Outcome:
    """Return what two canvases emit one after the other."""
    emit, logprobs = [*first.emit, *then.emit], [*first.logprobs, *then.logprobs]
    return msgspec.structs.replace(then, emit=emit, logprobs=logprobs)
