"""What `python -m benchmarks.decoders` computes of answers and of work, against values by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks.decoders.running import ComputeCount, seen_keys
from benchmarks.decoders.statistics import (
    Z_95,
    Interval,
    Point,
    paired_difference,
    reach,
    wilson,
)
from plait.decoders.contract.decoder import AttentionMode
from plait.kernels.paged_attention import AttentionMetadata
from tests.fixtures.bench import SPEC


@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_by_hand(right: int, cases: int, low: float, high: float) -> None:
    have = wilson(right, cases)
    assert have.value == right / cases
    assert (have.low, have.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "cases"), [(3, 7), (399, 400), (12, 432)])
def test_wilson_ends_where_the_score_test_does(right: int, cases: int) -> None:
    have = wilson(right, cases)
    for share in (have.low, have.high):
        errors = abs(right / cases - share) / math.sqrt(share * (1 - share) / cases)
        assert errors == pytest.approx(Z_95)


def test_no_case_has_no_share() -> None:
    with pytest.raises(ValueError, match="case"):
        wilson(0, 0)


def test_a_difference_of_one_case_in_a_hundred() -> None:
    """The sum of a resample is Binomial(100, 1 %), whose quantiles are 0 and 3."""
    right = [True] * 100
    have = paired_difference(right, [False, *right[1:]], ["t"] * 100)
    assert have == Interval(0.01, 0.0, 0.03)


def test_a_resample_keeps_every_task_s_share() -> None:
    have = paired_difference([True] * 4, [False, False, True, True], ["a", "a", "b", "b"])
    assert have == Interval(0.5, 0.5, 0.5)


SWEEP = [Point(1.0, 0.96), Point(3.0, 0.92), Point(5.0, 0.80), Point(8.0, 0.40)]


@pytest.mark.parametrize(
    ("sweep", "accuracy", "want"),
    [
        (SWEEP, 0.90, 3.0 + 2.0 / 6),  # 2 points below 92, of 12 between 92 and 80
        (SWEEP, 0.95, 1.5),
        (SWEEP, 0.40, 8.0),
        (SWEEP, 0.97, 0.0),
        (SWEEP[:1], 0.95, 1.0),
        (SWEEP[:1], 0.97, 0.0),
        ([Point(1.0, 0.8), Point(2.0, 0.9), Point(3.0, 0.7)], 0.85, 2.25),  # it rises, then falls
        ([Point(4.0, 0.5), Point(2.0, 0.9)], 0.7, 3.0),  # the other way round
        ([Point(2.0, 0.9), Point(1.0, 0.9)], 0.9, 2.0),
        ([], 0.5, 0.0),
    ],
)
def test_reach_by_hand(sweep: list[Point], accuracy: float, want: float) -> None:
    assert reach(sweep, accuracy) == pytest.approx(want)


def segments(pieces: Sequence[tuple[AttentionMode, int, int, list[int]]]) -> AttentionMetadata:
    """Return segments of (attend, context, rows, parents)."""
    starts = np.cumsum([0, *(rows for _, _, rows, _ in pieces)])
    parents = [p for _, _, rows, given in pieces for p in given or [-1] * rows]
    positions: list[int] = []
    for attend, context, rows, given in pieces:
        depths = list(range(rows))
        if attend is AttentionMode.TREE:
            depths = [0] * rows
            for i, parent in enumerate(given):
                depths[i] = depths[parent] + 1 if parent >= 0 else 0
        positions += [context + depth for depth in depths]
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor([context for _, context, _, _ in pieces], dtype=torch.int32),
        block_tables=torch.zeros(len(pieces), 1, dtype=torch.int32),
        attention_modes=torch.tensor(
            [int(attend) for attend, _, _, _ in pieces], dtype=torch.int32
        ),
        parents=torch.tensor(parents, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        slot_mapping=torch.zeros(len(parents), dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("attend", "context", "rows", "parents", "want"),
    [
        (AttentionMode.CAUSAL, 5, 3, [], 15 + 6),
        (AttentionMode.FULL, 5, 3, [], 15 + 9),
        (AttentionMode.TREE, 2, 4, [-1, 0, 0, 1], 8 + 1 + 2 + 2 + 3),
        (AttentionMode.BRANCHES, 2, 5, [0, 1, 0, 1, 1], 10 + 4 + 9),
        (AttentionMode.SHADOW, 2, 6, [], 12 + 9 + 3 * (2 + 1)),
        (AttentionMode.CONTEXT, 7, 2, [], 14),
    ],
)
def test_keys_are_counted_as_each_kind_sees_them(
    attend: AttentionMode, context: int, rows: int, parents: list[int], want: int
) -> None:
    piece = (attend, context, rows, parents)
    assert seen_keys(segments([piece])) == want
    other = (AttentionMode.CAUSAL, 1, 2, list[int]())
    assert seen_keys(segments([other, piece, other])) == want + 2 * 5


def test_flops_by_hand() -> None:
    work = ComputeCount(rows=10, head_rows=4, pairs=30)
    matrices = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16  # q and o, k and v, the feed-forward
    attention = 2 * 8 * 30  # scores and sums of values, over all heads
    assert work.flops(SPEC) == 2 * (3 * (10 * matrices + attention) + 4 * 8 * 100)
