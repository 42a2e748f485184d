"""Paged attention: agreement with the oracle, and rows that do not know their neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.paged_attention import (
    BLOCK_SIZE,
    BRANCHES,
    CAUSAL,
    CONTEXT,
    FULL,
    SHADOW,
    TREE,
    AttentionMetadata,
)
from plait.kernels.paged_attention.reference import paged_attention as oracle
from tests.fixtures.backends import COMPILED
from tests.fixtures.ragged import Geometry, Kind, make_segments, one_layer

MIXED: list[Kind] = [
    (0, 1, CAUSAL),
    (130, 7, TREE),
    (5, 33, FULL),
    (17, 40, CAUSAL),
    (128, 1, CAUSAL),
    (63, 16, TREE),
    (0, 100, CAUSAL),
    (64, 2, FULL),
    (1, 3, TREE),
    (21, 50, BRANCHES),
    (64, 3, BRANCHES),
    (37, 64, SHADOW),
    (70, 9, CONTEXT),
    (16, 16, CONTEXT),
]
HEADS = [(1, 1), (3, 1), (9, 3), (8, 2), (30, 1), (4, 4)]

pytestmark = pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")


def _setting(
    kinds: list[Kind], geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, AttentionMetadata]:
    torch.manual_seed(0)
    metadata = make_segments(kinds)
    keys, values = one_layer(metadata, geometry, own_rows=True)
    rows = int(metadata.cu_seqlens_q[-1])
    return torch.randn(rows, geometry.heads, geometry.head_dim), keys, values, metadata


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_mixed_segments_agree_with_the_oracle(
    isa: str, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    q, keys, values, metadata = _setting(MIXED, Geometry(heads, kv_heads, head_dim, dtype))
    scale = head_dim**-0.5
    for window in (0, 1, 20):
        have = COMPILED.paged_attention(q, (keys, values), metadata, scale=scale, window=window)
        want = oracle(q, keys, values, metadata, scale=scale, window=window)
        torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33, 100])
def test_every_context_agrees_with_the_oracle(isa: str, rows: int) -> None:
    contexts = (0, 1, 15, 16, 17, 63, 64, 65, 130)
    kinds = [(context, rows, kind) for context in contexts
             for kind in (CAUSAL, TREE, FULL, BRANCHES)]  # fmt: skip
    kinds += [(context, 2 * rows, SHADOW) for context in contexts]
    kinds += [(context + rows, rows, CONTEXT) for context in contexts]
    q, keys, values, metadata = _setting(kinds, Geometry(3, 1, 8))
    have = COMPILED.paged_attention(q, (keys, values), metadata, scale=0.5)
    want = oracle(q, keys, values, metadata, scale=0.5, window=0)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5)


def test_large_scores_do_not_overflow(isa: str) -> None:
    q, keys, values, metadata = _setting([(70, 9, CAUSAL)], Geometry(2, 1, 16))
    have = COMPILED.paged_attention(q * 1e3, (keys, values), metadata, scale=10.0)
    want = oracle(q * 1e3, keys, values, metadata, scale=10.0, window=0)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_give_the_bits_of_the_whole(isa: str, dtype: torch.dtype, window: int) -> None:
    q, keys, values, whole = _setting([(0, 150, CAUSAL)], Geometry(6, 2, 32, dtype))
    want = COMPILED.paged_attention(q, (keys, values), whole, scale=0.2, window=window)
    for cuts in ([1] * 150, [16] * 9 + [6], [64, 64, 22], [7, 100, 43]):
        starts = torch.tensor([0, *cuts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        chunked = replace(
            whole,
            cu_seqlens_q=starts,
            context_lens=starts[:-1].clone(),
            block_tables=whole.block_tables.expand(len(cuts), -1).contiguous(),
            attention_modes=torch.zeros(len(cuts), dtype=torch.int32),
        )
        have = COMPILED.paged_attention(q, (keys, values), chunked, scale=0.2, window=window)
        assert torch.equal(have, want)


def _alone(metadata: AttentionMetadata, index: int) -> tuple[slice, AttentionMetadata]:
    first, last = metadata.cu_seqlens_q[index : index + 2].tolist()
    rows = slice(first, last)
    return rows, AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, last - first], dtype=torch.int32),
        context_lens=metadata.context_lens[index : index + 1],
        block_tables=metadata.block_tables[index : index + 1],
        attention_modes=metadata.attention_modes[index : index + 1],
        parents=metadata.parents[rows],
        positions=metadata.positions[rows],
        slot_mapping=metadata.slot_mapping[rows],
    )


def test_segments_do_not_depend_on_the_batch(isa: str) -> None:
    q, keys, values, metadata = _setting(MIXED, Geometry(9, 3, 64, torch.bfloat16))
    want = COMPILED.paged_attention(q, (keys, values), metadata, scale=0.125)
    for index in range(len(MIXED)):
        rows, alone = _alone(metadata, index)
        assert torch.equal(
            COMPILED.paged_attention(q[rows], (keys, values), alone, scale=0.125), want[rows]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("context", "rows"), [(0, 32), (5, 40), (16, 60), (60, 96), (100, 7)])
def test_a_branch_has_the_bits_of_a_segment_of_its_own(
    isa: str, context: int, rows: int, dtype: torch.dtype
) -> None:
    """Where its rows lie, and what lies between them, changes nothing."""
    geometry = Geometry(6, 2, 40, dtype)
    q, keys, values, metadata = _setting([(context, rows, BRANCHES)], geometry)
    for window in (0, 20):
        have = COMPILED.paged_attention(q, (keys, values), metadata, scale=0.2, window=window)
        for branch in range(3):
            mine = torch.nonzero(metadata.parents == branch)[:, 0]
            k, v, alone = _moved(metadata, mine, keys, values)
            want = COMPILED.paged_attention(q[mine], (k, v), alone, scale=0.2, window=window)
            assert torch.equal(have[mine], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("context", "rows"), [(0, 5), (1, 40), (16, 60), (57, 30), (64, 9), (130, 70)]
)
def test_a_tree_row_has_the_bits_of_its_path_alone(
    isa: str, context: int, rows: int, dtype: torch.dtype
) -> None:
    """As if its path had been fed as a chain: a draft that comes true changes no bit."""
    geometry = Geometry(6, 2, 40, dtype)
    q, keys, values, metadata = _setting([(context, rows, TREE)], geometry)
    chain = torch.full((1,), CAUSAL, dtype=torch.int32)
    for window in (0, 20):
        have = COMPILED.paged_attention(q, (keys, values), metadata, scale=0.2, window=window)
        for row in range(rows):
            path = [row]
            while (parent := int(metadata.parents[path[0]])) >= 0:
                path.insert(0, parent)
            k, v, alone = _moved(metadata, torch.tensor(path), keys, values)
            alone = replace(alone, attention_modes=chain)
            want = COMPILED.paged_attention(q[path], (k, v), alone, scale=0.2, window=window)
            assert torch.equal(have[row], want[-1])


def _moved(
    metadata: AttentionMetadata, rows: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, AttentionMetadata]:
    """Return caches in which some rows stand right behind the context, and their segment."""
    context = int(metadata.context_lens[0])
    tokens = torch.arange(context, context + len(rows))
    slots = metadata.block_tables[0].long()[tokens // BLOCK_SIZE] * BLOCK_SIZE + tokens % BLOCK_SIZE
    k, v = keys.clone(), values.clone()
    block, offset = (
        metadata.slot_mapping[rows] // BLOCK_SIZE,
        metadata.slot_mapping[rows] % BLOCK_SIZE,
    )
    k[slots // BLOCK_SIZE, :, :, slots % BLOCK_SIZE] = keys[block, :, :, offset]
    v[slots // BLOCK_SIZE, :, slots % BLOCK_SIZE] = values[block, :, offset]
    return (
        k,
        v,
        AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, len(rows)], dtype=torch.int32),
            context_lens=metadata.context_lens,
            block_tables=metadata.block_tables,
            attention_modes=torch.full((1,), FULL, dtype=torch.int32),
            parents=metadata.parents[rows],
            positions=metadata.positions[rows],
            slot_mapping=slots,
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "spread"), [(8, 1.0), (40, 30.0), (64, 1e-20)])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_processors_with_fused_multiply_adds_give_the_same_bits(
    heads: int, kv_heads: int, head_dim: int, spread: float, dtype: torch.dtype
) -> None:
    """So that texts do not depend on the processor. Scores lie near, far apart or at zero.

    The generic kernels round between multiplication and addition, and are left out.
    """
    q, keys, values, metadata = _setting(MIXED, Geometry(heads, kv_heads, head_dim, dtype))
    best, found = extension.isa(), {}
    for window in (0, 20):
        for name in set(extension.isas()) - {"generic"}:
            extension.use_isa(name)
            found[name] = COMPILED.paged_attention(
                q * spread, (keys, values * spread), metadata, scale=0.3, window=window
            ).view(torch.int32)
        extension.use_isa(best)
        for name, bits in found.items():
            assert torch.equal(bits, next(iter(found.values()))), name


def test_bad_segments_are_refused() -> None:
    q, keys, values, metadata = _setting([(20, 3, TREE)], Geometry(1, 1, 16))

    def call(**changes: Tensor) -> None:
        COMPILED.paged_attention(q, (keys, values), replace(metadata, **changes), scale=1.0)

    with pytest.raises(IndexError, match="no block 99"):
        call(block_tables=torch.full_like(metadata.block_tables, 99))
    with pytest.raises(IndexError, match="beyond its block table"):
        call(context_lens=metadata.context_lens + 10 * BLOCK_SIZE)
    with pytest.raises(IndexError, match="cannot have parent"):
        call(parents=torch.tensor([-1, 1, 0], dtype=torch.int32))
    with pytest.raises(IndexError, match="no slot"):
        call(slot_mapping=metadata.slot_mapping - 10**6)
    with pytest.raises(ValueError, match="no kind of attention"):
        call(attention_modes=metadata.attention_modes + 5)
    with pytest.raises(ValueError, match="no shadows"):
        call(attention_modes=torch.full_like(metadata.attention_modes, SHADOW))
    with pytest.raises(ValueError, match="see nothing"):
        call(
            attention_modes=torch.full_like(metadata.attention_modes, CONTEXT),
            context_lens=metadata.context_lens - 20,
        )
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        call(cu_seqlens_q=metadata.cu_seqlens_q + 1)
