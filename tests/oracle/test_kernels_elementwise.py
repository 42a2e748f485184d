"""Norms and copies inside the cache: the compiled ones against torch."""

from __future__ import annotations

import pytest
import torch

from plait.kernels import extension
from plait.kernels.elementwise.reference import rope, write_kv
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import BLOCK_SIZE
from tests.fixtures.backends import COMPILED, REFERENCE, KernelBackend, both_backends

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("n", [1, 8, 15, 16, 17, 576])
def test_norm_agrees_with_torch(isa: str, n: int) -> None:
    x, gain = torch.randn(5, n), torch.randn(n)
    want = torch.nn.functional.rms_norm(x, (n,), gain, 1e-5)
    torch.testing.assert_close(COMPILED.rms_norm(x, gain, 1e-5), want)
    torch.testing.assert_close(REFERENCE.rms_norm(x, gain, 1e-5), want)


def test_rotation_is_that_of_complex_numbers() -> None:
    x, positions = torch.randn(4, 3, 10, dtype=torch.float64), torch.tensor([0, 5, 2, 7])
    angles = torch.arange(8).outer(torch.rand(4, dtype=torch.float64))
    turned = torch.complex(x[..., :4], x[..., 4:8]) * torch.polar(
        torch.ones(4, 1, 4, dtype=torch.float64), angles[positions].unsqueeze(1)
    )
    want = torch.cat([turned.real, turned.imag, x[..., 8:]], -1)
    torch.testing.assert_close(rope(x, angles.cos(), angles.sin(), positions), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_found_where_they_were_written(dtype: torch.dtype) -> None:
    k_layer = torch.zeros(4, 2, 8, BLOCK_SIZE, dtype=dtype)
    v_layer = torch.zeros(4, 2, BLOCK_SIZE, 8, dtype=dtype)
    k, v = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    slots = torch.tensor([3 * BLOCK_SIZE + 5, 0, BLOCK_SIZE + 15])
    write_kv(k, v, k_layer, v_layer, slots)
    for row, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, BLOCK_SIZE)
        assert torch.equal(k_layer[block, :, :, offset], k[row].to(dtype))
        assert torch.equal(v_layer[block, :, offset], v[row].to(dtype))
    assert int(k_layer.ne(0).sum()) == int(v_layer.ne(0).sum()) == k.numel()


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_copied_in_every_layer(dtype: torch.dtype, backend: KernelBackend) -> None:
    k, v = (
        torch.randn(3, 6, 2, 8, BLOCK_SIZE).to(dtype),
        torch.randn(3, 6, 2, BLOCK_SIZE, 8).to(dtype),
    )
    want_k, want_v = k.clone(), v.clone()
    want_k[:, [1, 2, 5]], want_v[:, [1, 2, 5]] = k[:, [0, 1, 2]], v[:, [0, 1, 2]]
    backend.copy_blocks(KVCache(k, v), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 5]))
    assert torch.equal(k, want_k)
    assert torch.equal(v, want_v)


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_slots_move_even_where_they_overlap(dtype: torch.dtype, backend: KernelBackend) -> None:
    k, v = (
        torch.randn(3, 6, 2, 8, BLOCK_SIZE).to(dtype),
        torch.randn(3, 6, 2, BLOCK_SIZE, 8).to(dtype),
    )
    src, dst = [17, 18, 40, 3], [16, 17, 18, 95]
    flat_k = k.permute(1, 4, 0, 2, 3).flatten(0, 1).clone()  # [slot, layer, head, dim]
    flat_v = v.permute(1, 3, 0, 2, 4).flatten(0, 1).clone()
    flat_k[dst], flat_v[dst] = flat_k[src], flat_v[src]
    backend.move_slots(KVCache(k, v), torch.tensor(src), torch.tensor(dst))
    assert torch.equal(k.permute(1, 4, 0, 2, 3).flatten(0, 1), flat_k)
    assert torch.equal(v.permute(1, 3, 0, 2, 4).flatten(0, 1), flat_v)


@pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")
def test_places_outside_the_cache_are_refused() -> None:
    k, v = torch.zeros(1, 2, 1, 8, BLOCK_SIZE), torch.zeros(1, 2, 1, BLOCK_SIZE, 8)
    with pytest.raises(IndexError, match="no place 2"):
        COMPILED.copy_blocks(KVCache(k, v), torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(IndexError, match="no place -1"):
        COMPILED.move_slots(KVCache(k, v), torch.tensor([-1]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"\[n\]"):
        COMPILED.move_slots(KVCache(k, v), torch.tensor([1, 2]), torch.tensor([2]))
