"""Measure what a forward pass costs by its rows, before the first request."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from plait.decoders.contract.costs import CostCurve
from plait.kernels.backend import KernelBackend
from plait.kernels.paged_attention import AttentionSegment
from plait.server.engine.forward_batch import ForwardBatch, SequenceInput, build_forward_batch
from plait.server.engine.kv.block_table import num_blocks_for
from plait.server.engine.runner import Runner

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # rows
CONTEXT = 64  # tokens that the rows see; what stands in the cache doesn't matter
ROUNDS = 3  # the fastest counts: what disturbs a pass only adds


def measure(runner: Runner, max_tokens: int) -> CostCurve:
    """Return the curve of a runner whose cache nobody uses yet. Cost: some thirty passes.

    All sizes take turns, so that a machine that gets slower meanwhile does so for all of them.

    Args:
        runner: of a model whose KV cache is empty.
        max_tokens: of one sequence, as far as the model and the cache go.
    """
    context = min(CONTEXT, max_tokens - SIZES[-1])
    if context < 1:
        return CostCurve()
    found = dict.fromkeys(SIZES, math.inf)
    for _ in range(ROUNDS):
        for rows in SIZES:
            found[rows] = min(found[rows], _seconds(runner, rows, context))
    return CostCurve(found)


def dummy_batch(
    backend: KernelBackend, rows: int, context: int, block_ids: Sequence[int]
) -> ForwardBatch:
    """Return a batch of one sequence, in blocks that nobody uses; all its logits are read."""
    segment = AttentionSegment([0] * rows, context, block_ids)
    return build_forward_batch([SequenceInput([segment], range(rows))], backend)


def _seconds(runner: Runner, rows: int, context: int) -> float:
    begun = time.perf_counter()
    blocks = range(num_blocks_for(context + rows))
    batch = dummy_batch(runner.backend, rows, context, blocks)
    runner.logits(batch, runner.forward(batch))
    return time.perf_counter() - begun
