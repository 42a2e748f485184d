"""Helpers of the engine's step: grouping rows by decoder, and making reports."""

from __future__ import annotations

import time
from collections.abc import Sequence as Sequences
from typing import Any

import structlog
import torch

from plait.decoders.contract.decoder import Decoder, Forward, Outcome
from plait.decoders.contract.isolation import attempt
from plait.server.engine.sequence import ScheduledSequence, Sequence
from plait.server.telemetry.token_trace import TokenTrace
from plait.server.wire.counters import EngineCounters, SpeculationCounters, increment
from plait.server.wire.messages import Delta, GenerateRequest, Started

log = structlog.stdlib.get_logger(__name__)


def group_by_decoder(sequences: Sequences[Sequence]) -> list[tuple[Decoder[Any], list[int]]]:
    """Return each decoder in use with the indices of its sequences."""
    groups: dict[int, tuple[Decoder[Any], list[int]]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(id(sequence.decoder), (sequence.decoder, []))[1].append(i)
    return list(groups.values())


def select_sequences(forward: Forward, members: Sequences[int]) -> Forward:
    """Return the part of a packed forward that belongs to some sequences; a view if it is all."""
    offsets = forward.offsets
    if len(members) == len(offsets) - 1:
        return forward
    rows = [row for i in members for row in range(offsets[i], offsets[i + 1])]
    starts = [0]
    for i in members:
        starts.append(starts[-1] + offsets[i + 1] - offsets[i])
    index = torch.tensor(rows, dtype=torch.int64, device=forward.logits.device)
    hidden = None if forward.hidden is None else forward.hidden[index]
    return Forward(forward.logits[index], starts, hidden)


def count_rows(counters: EngineCounters, piece: ScheduledSequence, outcome: Outcome | None) -> None:
    """Count what a step read and gave; before the outcome is made true.

    A prompt counts as it is read for the first time; what stands on a canvas is read at its first
    forward pass.
    """
    sequence = piece.sequence
    if not sequence.forwards:
        read = sequence.prompt_length if outcome is not None else piece.start
        counters.prompt_tokens += max(
            min(read, sequence.prompt_length) - sequence.num_computed_tokens, 0
        )
    if outcome is None:
        return
    counters.generation_tokens += len(outcome.emit)
    if outcome.drafted:
        count_drafts(counters.speculation, outcome)
    if sequence.attention_block_size != 1:  # a canvas
        counters.diffusion.num_forwards += 1
        counters.diffusion.canvas_rows += piece.num_proposed_tokens
        counters.diffusion.committed_tokens += len(outcome.emit)


def count_drafts(counters: SpeculationCounters, outcome: Outcome) -> None:
    """Count the draft of one sequence in one step, and what was accepted of it."""
    counters.num_drafts += 1
    for source, count in outcome.drafted.items():
        increment(counters.draft_tokens, source, count)
    for source, count in outcome.accepted.items():
        increment(counters.accepted_tokens, source, count)
    for position in range(len(outcome.keep)):
        increment(counters.accepted_at, position)


def log_fault(request_id: str, cause: Exception) -> None:
    """Write down why a request has failed; the client is told nothing of it."""
    log.error("a request failed", request_id=request_id, exc_info=cause)


def release(sequence: Sequence, trace: TokenTrace | None) -> None:
    """Release what the decoder holds of a sequence that has left its group; write its text down.

    trace: where to; None: the operator does not want that.
    """
    fault = attempt(lambda: sequence.decoder.finish(sequence.state))
    if fault is not None:  # it has ended anyway
        log_fault(sequence.request.request_id, fault)
    if trace is not None:
        text, salt = sequence.text, sequence.request.cache_salt
        trace.write([*text.prompt], text.output, salt)


def make_started(sequence: Sequence) -> Started:
    """Report that a sequence left the queue, with what the prefix cache gave."""
    sequence.is_started = True
    return Started(sequence.request.request_id, sequence.num_computed_tokens, time.monotonic())


def is_past_deadline(request: GenerateRequest) -> bool:
    """Tell whether the request's deadline has passed."""
    deadline = request.deadline
    return deadline is not None and deadline <= time.monotonic()


def make_deadline_delta(sequence: Sequence) -> Delta:
    """Report the end of a sequence whose time is over."""
    return Delta(sequence.request.request_id, sequence.index, [], finish_reason="deadline")


def make_delta(sequence: Sequence, outcome: Outcome) -> Delta | None:
    """Report what a step gave one sequence; None if there is nothing to see."""
    request = sequence.request
    if not outcome.emit and outcome.finish is None:
        return None
    is_first = len(sequence.steps) == len(outcome.emit)
    return Delta(
        request.request_id,
        sequence.index,
        list(outcome.emit),
        logprobs=list(outcome.logprobs) or None,
        finish_reason=outcome.finish,
        stop_token=outcome.stop_token,
        prompt_logprobs=sequence.prompt_logprobs
        if is_first and sequence.reports_prompt_logprobs
        else None,
        trace=_trace_due(sequence) if outcome.finish is not None else None,
        predicted=outcome.predicted,
        scores=outcome.scores,
    )


def _trace_due(sequence: Sequence) -> dict[str, Any] | None:
    """Return what an ended sequence tells of its decoding: all, if asked; that it was lossy."""
    if sequence.request.decoding.trace:
        return decoding_report(sequence)
    lossy = sequence.decoder.report(sequence.state).get("lossy")
    return {"lossy": lossy} if lossy else None


def decoding_report(sequence: Sequence) -> dict[str, Any]:
    """Return the `decoding` object of docs/api.md for one sequence."""
    emitted = len(sequence.steps)
    return {
        "forwards": sequence.forwards,
        "tokens_per_forward": emitted / max(sequence.forwards, 1),  # a deadline may come first
        "drafted": {},
        "accepted": {},
        "steps": sequence.steps,
        **sequence.decoder.report(sequence.state),
    }
