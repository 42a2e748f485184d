"""Matrix products: exact storage, agreement with torch, rows that do not know their neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.linear import (
    Mode,
    as_fixed,
    dequantize,
    from_dense,
    from_quantized,
    take_rows,
)
from plait.kernels.linear.fixed import column_steps
from plait.kernels.linear.reference import rounded
from tests.fixtures.backends import (
    COMPILED,
    REFERENCE,
    KernelBackend,
    both_backends,
    isas_alike,
    using_isa,
)

MODES: tuple[Mode, ...] = ("fp32", "bf16", "int8", "int4", "int4wide", "int4fixed")
SHAPES = [(576, 576), (70, 100), (31, 33), (1, 1), (96, 1536)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 100, 129]

compiled = pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _groups(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    low, high = (-128, 128) if dtype == torch.int8 else (0, 16)
    q = torch.randint(low, high, (n, k), dtype=dtype)
    return q, _random(n, k // 32).half().float(), _random(n, k // 32, seed=1).half().float()


@both_backends
@pytest.mark.parametrize(("n", "k"), [(70, 96), (32, 32), (1, 64)])
def test_groups_are_held_exactly(n: int, k: int, backend: KernelBackend) -> None:
    q, scale, minimum = _groups(n, k, torch.uint8)
    want = q.view(n, -1, 32) * scale.unsqueeze(-1) + minimum.unsqueeze(-1)
    have = dequantize(backend.pack(from_quantized(q, scale, minimum)))
    assert torch.equal(have, want.view(n, k))
    q, scale, _ = _groups(n, k, torch.int8)
    want = q.view(n, -1, 32) * scale.unsqueeze(-1)
    assert torch.equal(dequantize(backend.pack(from_quantized(q, scale, None))), want.view(n, k))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_both_layouts_hold_the_same(mode: Mode, n: int, k: int) -> None:
    matrix = _random(n, k)
    rows = from_dense(matrix, mode)
    panels = COMPILED.pack(rows)
    assert rows.layout == "rows"
    assert torch.equal(dequantize(panels), dequantize(rows))


@both_backends
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_rows_alone_are_those_of_the_matrix(
    mode: Mode, n: int, k: int, backend: KernelBackend
) -> None:
    weight = backend.pack(from_dense(_random(n, k), mode))
    ids = torch.randint(0, n, (50,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(take_rows(weight, ids), dequantize(weight)[ids])
    assert take_rows(weight, ids[:0]).shape == (0, k)
    for dtype in (torch.float32, torch.bfloat16):
        have = backend.take_rows(weight, ids, dtype)
        assert torch.equal(have, dequantize(weight)[ids].to(dtype).float())
    with pytest.raises(IndexError):
        backend.take_rows(weight, torch.tensor([n]), torch.float32)


@pytest.mark.parametrize(("mode", "steps"), [("int8", 254), ("int4", 15)])
def test_quantising_errs_by_half_a_step(mode: Mode, steps: int) -> None:
    matrix = _random(64, 128)
    groups = matrix.view(64, -1, 32)
    spread = groups.amax(-1) - groups.amin(-1)
    if mode == "int8":
        spread = 2 * groups.abs().amax(-1)
    error = (dequantize(from_dense(matrix, mode)).view_as(groups) - groups).abs().amax(-1)
    half = matrix.abs().amax() * 2**-10  # scale and minimum are rounded to fp16
    assert torch.all(error <= spread / steps / 2 + half)


def test_constant_groups_survive_quantising() -> None:
    matrix = torch.full((3, 64), 0.5)
    for mode in ("int8", "int4"):
        torch.testing.assert_close(dequantize(from_dense(matrix, mode)), matrix, rtol=1e-3, atol=0)
    assert torch.equal(dequantize(from_dense(torch.zeros(3, 64), "int4")), torch.zeros(3, 64))


def test_groups_that_do_not_fit_are_refused() -> None:
    q, scale, minimum = _groups(4, 64, torch.uint8)
    with pytest.raises(ValueError, match="no groups of 32"):
        from_quantized(q, scale[:, :1], minimum)
    with pytest.raises(ValueError, match="int4 groups have a minimum"):
        from_quantized(q, scale, None)
    signed, halves, _ = _groups(4, 64, torch.int8)
    with pytest.raises(ValueError, match="fp16 numbers"):
        from_quantized(signed, halves + 1e-6, None)


def test_groups_keep_scales_of_more_than_16_bits() -> None:
    q, scale, minimum = _groups(40, 64, torch.uint8)
    exact = q.view(40, 2, 32) * (scale + 1e-6)[..., None] + minimum[..., None]
    weight = from_quantized(q, scale + 1e-6, minimum)

    assert weight.mode == "int4wide"
    assert torch.equal(dequantize(weight), exact.view(40, 64))


@compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_agree_with_torch(isa: str, mode: Mode, n: int, k: int) -> None:
    weight, bias = COMPILED.pack(from_dense(_random(n, k), mode)), _random(n, seed=1)
    for rows in ROWS:
        x = _random(rows, k, seed=rows)
        have, want = COMPILED.linear(x, weight, bias), REFERENCE.linear(x, weight, bias)
        scale = (x.abs() @ dequantize(weight).abs().T).amax()  # of the terms that are summed
        assert float((have - want).abs().amax() / scale) < 1e-6


@compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), [(576, 576), (70, 100)])
def test_a_row_does_not_depend_on_the_others(isa: str, mode: Mode, n: int, k: int) -> None:
    weight, x = COMPILED.pack(from_dense(_random(n, k), mode)), _random(300, k)
    whole = COMPILED.linear(x, weight)
    for rows in ROWS:
        assert torch.equal(COMPILED.linear(x[7 : 7 + rows], weight), whole[7 : 7 + rows])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(COMPILED.linear(x[order], weight), whole[order])


@compiled
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", MODES)
def test_a_poisoned_row_stays_alone(isa: str, mode: Mode, poison: float) -> None:
    weight, x = COMPILED.pack(from_dense(_random(40, 64), mode)), _random(9, 64)
    clean = COMPILED.linear(x, weight)
    x[4, 37] = poison
    have = COMPILED.linear(x, weight)
    assert not torch.any(have[4].isfinite())
    assert torch.equal(have[[0, 1, 2, 3, 5, 6, 7, 8]], clean[[0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize(("mode", "size", "steps"), [("int8", 32, 32767), ("int4", 8, 127)])
def test_inputs_err_by_half_a_step(mode: Mode, size: int, steps: int) -> None:
    """A step is that of the greatest magnitude of `size` neighbours, or of a 16th more for int4."""
    x = _random(7, 100) * 10 ** _random(7, 1, seed=1)
    whole = x[:, :96].view(7, 3, 32).abs().amax(-1, keepdim=True)
    few = x[:, :96].view(7, 3, -1, size)
    step = (few.abs().amax(-1) + (whole / 16 if mode == "int4" else 0)) / steps
    error = (rounded(x, mode)[:, :96].view_as(few) - few).abs().amax(-1)
    assert torch.all(error <= step * 0.501)
    assert torch.any(error > step * 0.25)


@compiled
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_integers_are_summed_exactly(isa: str, dtype: torch.dtype) -> None:
    """The greatest sums that a group can have, and random ones, in steps of 1."""
    is_word = dtype == torch.int8
    low, high = (-128, 128) if is_word else (0, 16)
    q = torch.randint(low, high, (40, 64), dtype=dtype)
    q[0] = low if is_word else high - 1
    minimum = None if is_word else torch.zeros(40, 2)
    weight = COMPILED.pack(from_quantized(q, torch.ones(40, 2), minimum))
    x = torch.randint(-32767, 32768, (9, 64)) if is_word else _with_factors(9, 64)
    most = 32767 if is_word else 127 * 16  # so a step is 1
    x[:, [0, 32]] = most
    x[0], x[1] = most, -most
    have = COMPILED.linear(x.float(), weight)
    for row, sums in zip(have, x.view(9, 1, 2, 32) * q.view(1, 40, 2, 32).long(), strict=True):
        assert torch.equal(row, sums.sum(-1).float().sum(-1))


@compiled
@pytest.mark.parametrize("rows", [1, 3, 16, 21])
@pytest.mark.parametrize(("n", "k"), [(40, 64), (33, 1536), (32, 4096)])
def test_fixed_sums_are_exact(isa: str, n: int, k: int, rows: int) -> None:
    """Against sums in 64 bits, the greatest that columns and rows can have among them."""
    generator = torch.Generator().manual_seed(k)
    most = min(2**14, 2**25 // k) - 17
    factor = torch.randint(-most // 8, most // 8, (n, k // 32), generator=generator)
    offset = torch.randint(-most // 30, most // 30, (n, k // 32), generator=generator)
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator)
    factor[0], offset[0], q[0] = 0, most, 0
    factor[1], offset[1], q[1] = most // 15, 0, 15
    step = 2.0 ** torch.randint(-20, 3, (n, 1), generator=generator)
    weight = as_fixed(from_quantized(q, factor * step, offset * step + 2**-24))
    x = torch.randint(-8127, 8128, (rows, k), generator=generator)
    x[:, 5] = 8127  # so a step is 1
    x[0], x[-1] = 8127, -8127
    whole = (dequantize(weight) / step).double() @ x.double().T
    have = COMPILED.linear(x.float(), COMPILED.pack(weight))
    assert torch.equal(whole, whole.round())
    torch.testing.assert_close(have.T.double(), whole * step, rtol=2**-22, atol=0)


@pytest.mark.parametrize("k", [32, 96, 4096])
def test_fixed_steps_hold_weights_in_15_bits(k: int) -> None:
    """It moves by half a step for its offset and each of its q; rounding again does nothing."""
    weight = from_dense(_random(50, k) * 10 ** _random(50, 1, seed=1), "int4wide")
    fixed = as_fixed(weight)
    assert weight.scale is not None and weight.minimum is not None
    step = column_steps(weight.scale, weight.minimum, 16).unsqueeze(-1)
    error = (dequantize(fixed) - dequantize(weight)).abs()
    assert torch.all(error <= step * 8.001)
    assert torch.all(step <= dequantize(weight).abs().amax(-1, keepdim=True) * 2.0**-11)
    again = as_fixed(fixed)
    assert torch.equal(dequantize(again), dequantize(fixed))
    with pytest.raises(ValueError, match="have no minimum"):
        as_fixed(from_dense(_random(4, 64), "int8"))


def test_fixed_columns_may_be_zero() -> None:
    dense = torch.zeros(40, 64)
    assert torch.equal(dequantize(COMPILED.pack(from_dense(dense, "int4fixed"))), dense)


def _with_factors(rows: int, k: int) -> Tensor:
    """Return inputs that are whole multiples of 8's own factors, the first 8 of a group with 16."""
    factor = torch.randint(1, 17, (rows, k // 8, 1))
    factor[:, ::4] = 16
    whole = torch.randint(-127, 128, (rows, k // 8, 8))
    whole[..., -1] = 127  # or another factor would do
    return (factor * whole).view(rows, k)


@compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("rows", [1, 6, 16, 35, 100])
def test_paths_have_the_same_bits(mode: Mode, n: int, k: int, rows: int) -> None:
    weight, x = COMPILED.pack(from_dense(_random(n, k), mode)), _random(rows, k, seed=1)
    found = {}
    for name in extension.isas():
        with using_isa(name):
            found[name] = COMPILED.linear(x, weight)
    alike = isas_alike(bf16=mode == "bf16")
    for name, have in found.items():
        assert name not in alike or torch.equal(have, found[alike[0]]), name
        torch.testing.assert_close(have, found["generic"], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("avx512bf16" not in extension.isas(), reason="no vdpbf16ps")
@pytest.mark.parametrize("rows", [1, 5, 8, 21])
def test_pairs_of_bf16_are_one_chain(rows: int) -> None:
    """Over the pairs of k, the odd one first; products of bf16 are exact in fp32."""
    dense, x = _random(70, 100), _random(rows, 100, seed=1)
    weight = COMPILED.pack(from_dense(dense, "bf16"))
    with using_isa("avx512bf16"):
        have = COMPILED.linear(x, weight)
    products = x.bfloat16().float()[:, None, :] * dense.bfloat16().float()
    want = torch.zeros(rows, 70)
    for even in range(0, 100, 2):
        want = (want + products[..., even + 1]) + products[..., even]
    assert torch.equal(have, want)


@compiled
@pytest.mark.parametrize("mode", ["int8", "int4", "int4fixed"])
def test_inputs_without_a_step_are_zero(isa: str, mode: Mode) -> None:
    weight = COMPILED.pack(from_dense(_random(40, 64), mode))
    x = torch.zeros(3, 64)
    x[1] = 1e-38
    assert torch.equal(COMPILED.linear(x, weight), torch.zeros(3, 40))
    assert torch.equal(REFERENCE.linear(x, weight), torch.zeros(3, 40))


@compiled
def test_threads_do_not_change_bits() -> None:
    weight, x = COMPILED.pack(from_dense(_random(1000, 576), "int4")), _random(20, 576)
    threads = torch.get_num_threads()
    want = COMPILED.linear(x, weight)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(COMPILED.linear(x, weight), want)
    finally:
        torch.set_num_threads(threads)


@compiled
def test_wrong_shapes_are_refused() -> None:
    weight = COMPILED.pack(from_dense(_random(40, 64), "bf16"))
    with pytest.raises(ValueError, match="do not hold"):
        COMPILED.linear(_random(2, 32), weight)
    with pytest.raises(ValueError, match="x must be"):
        COMPILED.linear(_random(2, 64).double(), weight)
    assert COMPILED.linear(_random(0, 64), weight).shape == (0, 40)
