"""Measure what a forward pass costs by its rows, before the first request."""

from __future__ import annotations

import math
import time
from typing import Any, cast

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import Decoder, Proposal
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.kv.block_table import BlockTable, num_blocks_for
from plait.server.engine.runner import Runner
from plait.server.engine.sequence import ScheduledSequence, Sequence
from plait.server.wire.messages import GenerateRequest

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # rows
CONTEXT = 64  # tokens that the rows see; what stands in the cache doesn't matter
ROUNDS = 5  # the fastest counts: what disturbs a pass only adds


def measure(runner: Runner, max_tokens: int) -> CostCurve:
    """Return the curve of a runner whose cache nobody uses yet. Cost: some fifty passes.

    max_tokens: of one sequence, as far as the model and the cache go.

    All sizes take turns, so that a machine that turns slower meanwhile does so for all of them.
    """
    context = min(CONTEXT, max_tokens - SIZES[-1])
    if context < 1:
        return CostCurve()
    found = dict.fromkeys(SIZES, math.inf)
    for _ in range(ROUNDS):
        for rows in SIZES:
            found[rows] = min(found[rows], _seconds(_slice(rows, context), runner))
    return CostCurve(found)


def _seconds(piece: ScheduledSequence, runner: Runner) -> float:
    begun = time.perf_counter()
    hidden, offsets = runner.forward([piece])
    runner.logits([piece], hidden, offsets)
    return time.perf_counter() - begun


def _slice(rows: int, context: int) -> ScheduledSequence:
    return dummy_sequence(rows, context, list(range(num_blocks_for(context + rows))))


def dummy_sequence(rows: int, context: int, blocks: list[int]) -> ScheduledSequence:
    """Return one pending token and rows - 1 drafts behind it, in blocks that nobody uses."""
    sequence = Sequence(
        GenerateRequest("", [0], SamplingParams(), 1),
        Text([0] * (context + 1)),
        index=0,
        decoder=cast(Decoder[Any], None),  # nobody decodes
        state=None,
        block_table=BlockTable(block_ids=blocks),
        num_computed_tokens=context,
    )
    return ScheduledSequence(sequence, 1, Proposal([0] * (rows - 1)))
