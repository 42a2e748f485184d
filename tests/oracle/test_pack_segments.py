"""Packing a pass: the compiled form gives what the reference gives, and refuses what it refuses."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.kernels.paged_attention import BLOCK_SIZE, CONTEXT, TREE, AttentionSegment
from tests.fixtures.backends import (
    COMPILED,
    REFERENCE,
    KernelBackend,
    both_backends,
    needs_compiled,
)

TOKENS = st.integers(0, 2**31 - 1)


@st.composite
def segments(draw: st.DrawFn) -> AttentionSegment:
    """Return a segment as a decoder might feed it, in scattered blocks."""
    token_ids = draw(st.lists(TOKENS, max_size=20))
    context_len, mode = draw(st.integers(1, 70)), draw(st.integers(0, CONTEXT))
    rows, positions = len(token_ids), None
    if mode == CONTEXT:
        positions = draw(st.lists(st.integers(0, context_len - 1), min_size=rows, max_size=rows))
    elif draw(st.booleans()):
        positions = draw(st.lists(st.integers(0, 99), min_size=rows, max_size=rows))
    stop = context_len + (0 if mode == CONTEXT else rows)
    held = -(-stop // BLOCK_SIZE) + draw(st.integers(0, 2))
    block_ids = draw(st.lists(st.integers(0, 10**6), min_size=held, max_size=held))
    parents = None
    if mode == TREE or draw(st.booleans()):
        parents = draw(st.lists(st.integers(-1, 19), min_size=rows, max_size=rows))
    return AttentionSegment(token_ids, context_len, block_ids, mode, parents, positions)


@needs_compiled
@given(st.lists(segments(), max_size=5))
def test_compiled_packing_is_the_reference(pieces: list[AttentionSegment]) -> None:
    have_ids, have = COMPILED.pack_segments(pieces)
    want_ids, want = REFERENCE.pack_segments(pieces)
    for one, other in zip((have_ids, *astuple(have)), (want_ids, *astuple(want)), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)


def test_a_plain_row_stands_behind_its_context() -> None:
    token_ids, metadata = REFERENCE.pack_segments([AttentionSegment([7], 17, [5, 2, 9])])
    assert token_ids.tolist() == [7]
    assert metadata.block_tables.tolist() == [[5, 2]]
    assert metadata.positions.tolist() == [17]
    assert metadata.slot_mapping.tolist() == [2 * BLOCK_SIZE + 1]
    assert metadata.parents.tolist() == [-1]


BAD = {
    "too few blocks": AttentionSegment([7], 16, [5]),
    "too few positions": AttentionSegment([7, 8], 0, [5], positions=[3]),
    "too many parents": AttentionSegment([7], 0, [5], mode=TREE, parents=[-1, 0]),
    "refreshed beyond its blocks": AttentionSegment([7], 16, [5], mode=CONTEXT, positions=[16]),
}


@pytest.mark.parametrize("segment", BAD.values(), ids=BAD)
@both_backends
def test_what_does_not_fit_is_refused(backend: KernelBackend, segment: AttentionSegment) -> None:
    with pytest.raises((ValueError, IndexError)):
        backend.pack_segments([segment])
