"""Forward passes, and which sequence is at fault when one fails (law 7).

A pass changes nothing but the keys and values of the tokens that it feeds, so a failed pass can be
repeated with each sequence alone, which gives the same tokens. Sequences that fail alone are at
fault. If all of them fail, the runner itself may be broken: `check_runner` finds out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from plait.decoders.contract.decoder import Forward
from plait.decoders.contract.isolation import attempt
from plait.decoders.sampling.logprobs import prompt_logprobs
from plait.server.engine.forward_batch import build_forward_batch
from plait.server.engine.kv.block_pool import BlockPool
from plait.server.engine.profile import dummy_batch
from plait.server.engine.runner import Runner, scheduled_input
from plait.server.engine.sequence import ScheduledSequence


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass over some slices, and the logits that their decoders read."""

    slices: Sequences[ScheduledSequence]
    forward: Forward
    num_rows: int
    seconds: float


def run_forward_passes(
    runner: Runner, slices: Sequences[ScheduledSequence]
) -> tuple[list[ForwardPass], list[tuple[ScheduledSequence, Exception]]]:
    """Return the passes that were made, usually one, and the slices that can't be computed."""
    whole = attempt(partial(_run, runner, slices))
    if isinstance(whole, ForwardPass):
        return [whole], []
    if len(slices) == 1:
        return [], [(slices[0], whole)]
    made, failed = [], []
    for piece in slices:
        alone = attempt(partial(_run, runner, [piece]))
        if isinstance(alone, ForwardPass):
            made.append(alone)
        else:
            failed.append((piece, alone))
    return made, failed


def check_runner(runner: Runner, pool: BlockPool) -> None:
    """Raise what the runner raises if it can't compute anything any more."""
    held = pool.allocate(1)
    if held is not None:
        try:
            batch = dummy_batch(runner.backend, 1, 0, held)
            runner.logits(batch, runner.forward(batch))
        finally:
            pool.release(held)


def _run(runner: Runner, slices: Sequences[ScheduledSequence]) -> ForwardPass:
    begun = time.perf_counter()
    batch = build_forward_batch([scheduled_input(each) for each in slices], runner.backend)
    whole = any(piece.sequence.reports_prompt_logprobs for piece in slices)
    hidden = runner.forward(batch, whole=whole)
    _collect_prompt_logprobs(runner, slices, hidden, batch.row_offsets)
    forward = runner.logits(batch, hidden)
    return ForwardPass(slices, forward, len(hidden), time.perf_counter() - begun)


def _collect_prompt_logprobs(
    runner: Runner, slices: Sequences[ScheduledSequence], hidden: Tensor, offsets: Sequences[int]
) -> None:
    """Append to each sequence that asked what this pass's rows say of the prompt's next tokens.

    The first token has no distribution of its own: its entry is None. A chunk that is computed
    again after a preemption adds nothing.
    """
    for piece, first in zip(slices, offsets[:-1], strict=True):
        sequence = piece.sequence
        if not sequence.reports_prompt_logprobs:
            continue
        if not sequence.prompt_logprobs:
            sequence.prompt_logprobs.append(None)
        start = len(sequence.prompt_logprobs) - 1  # row that tells of the first missing token
        stop = min(sequence.num_computed_tokens + piece.num_pending, sequence.prompt_length - 1)
        if start < sequence.num_computed_tokens or start >= stop:
            continue
        rows = hidden[
            first + start - sequence.num_computed_tokens : first
            + stop
            - sequence.num_computed_tokens
        ]
        tokens = sequence.text[start + 1 : stop + 1]
        found = prompt_logprobs(
            runner.model.logits(rows),
            tokens,
            sequence.request.prompt_logprobs or 0,
            backend=runner.backend,
        )
        sequence.prompt_logprobs.extend(found)
