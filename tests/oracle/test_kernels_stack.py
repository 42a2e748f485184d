"""The decoder stack: agreement with the oracle, and rows that do not know their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, repeat
from typing import Literal

import pytest
import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.decoder_stack import DecoderStack, LayerWeights, StackConfig
from plait.kernels.kv_cache import KVCache, KVCacheShape
from plait.kernels.linear import Mode, Weight, from_dense
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
from tests.fixtures.backends import (
    COMPILED,
    REFERENCE,
    KernelBackend,
    both_backends,
    isas_alike,
    using_isa,
)
from tests.fixtures.ragged import Geometry, Kind, causal, make_segments, one_layer

MIXED: list[Kind] = [
    (0, 5, CAUSAL),
    (40, 1, CAUSAL),
    (17, 6, TREE),
    (30, 16, FULL),
    (0, 70, CAUSAL),
    (20, 24, BRANCHES),
    (9, 16, SHADOW),
    (40, 12, CONTEXT),
]
LAYERS = 3
# Largest difference from the oracle, as a share of the largest output: rounding to bf16 between
# the products may fall to either side.
Modes = Mode | Literal["mixed"]
TOLERANCE: dict[Modes, float] = {
    "fp32": 1e-5,
    "bf16": 2e-2,
    "int8": 1e-2,
    "int4": 2e-2,
    "int4wide": 2e-2,
    "int4fixed": 1e-2,
    "mixed": 2e-2,
}
EACH: tuple[Mode, ...] = ("fp32", "bf16", "int8", "int4", "bf16", "int4wide", "int8")  # of "mixed"

pytestmark = pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")


@dataclass(frozen=True, slots=True)
class Family:
    """What families of models differ in."""

    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    hidden: int = 72
    ffn: int = 100
    rotary_half: int = 8
    head_norm: bool = False
    biases: bool = False
    window: int = 0
    rotary: bool = True


FAMILIES = {
    "llama": Family(),
    "qwen2": Family(biases=True, heads=4, kv_heads=4),
    "qwen3": Family(head_norm=True, head_dim=32, rotary_half=16),
    "mistral": Family(window=9, hidden=64, ffn=96),
    "partial rotary": Family(rotary_half=3),
    "no positions": Family(rotary=False),
}


def _layer(family: Family, mode: Modes, backend: KernelBackend) -> LayerWeights:
    modes = cycle(EACH) if mode == "mixed" else repeat(mode)

    def weight(n: int, k: int) -> Weight:
        return backend.pack(from_dense(torch.randn(n, k) * k**-0.5, next(modes)))

    def vector(n: int, wanted: bool = True, mean: float = 0.0) -> Tensor | None:
        values = torch.randn(n) * 0.2 + mean
        return values if wanted else None

    hidden, ffn, dim = family.hidden, family.ffn, family.head_dim
    q, k = family.heads * dim, family.kv_heads * dim
    biases = {"q": q, "k": k, "v": k, "o": hidden, "gate": ffn, "up": ffn, "down": hidden}
    gain = torch.randn(2, hidden) * 0.2 + 1
    return LayerWeights(
        attn_norm=gain[0],
        q=weight(q, hidden),
        k=weight(k, hidden),
        v=weight(k, hidden),
        o=weight(hidden, q),
        ffn_norm=gain[1],
        gate=weight(ffn, hidden),
        up=weight(ffn, hidden),
        down=weight(hidden, ffn),
        q_norm=vector(dim, family.head_norm, 1.0),
        k_norm=vector(dim, family.head_norm, 1.0),
        **{f"{name}_bias": vector(n, family.biases) for name, n in biases.items()},
        window=family.window,
        rotary=family.rotary,
        experts=None,
    )


def make_stack(family: Family, mode: Modes, backend: KernelBackend) -> DecoderStack:
    """Return a random stack; the same one for every backend."""
    torch.manual_seed(1)
    angles = torch.arange(200).outer(100.0 ** -torch.arange(0, 1, 1 / family.rotary_half))
    config = StackConfig(
        hidden=family.hidden,
        heads=family.heads,
        kv_heads=family.kv_heads,
        head_dim=family.head_dim,
        ffn=family.ffn,
        norm_eps=1e-5,
        scale=family.head_dim**-0.5,
        cos=angles.cos(),
        sin=angles.sin(),
    )
    return backend.decoder_stack([_layer(family, mode, backend) for _ in range(LAYERS)], config)


def _cache(metadata: AttentionMetadata, family: Family, mode: Modes) -> KVCache:
    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    geometry = Geometry(family.heads, family.kv_heads, family.head_dim, dtype)
    layers = [one_layer(metadata, geometry, own_rows=False) for _ in range(LAYERS)]
    keys, values = (torch.stack(list(parts)) for parts in zip(*layers, strict=True))
    shape = KVCacheShape(LAYERS, family.kv_heads, family.head_dim, dtype)
    cache = COMPILED.new_kv_cache(shape, keys.shape[1])
    cache.k.copy_(keys)
    cache.v.copy_(values)
    return cache


def _run(stack: DecoderStack, x: Tensor, metadata: AttentionMetadata, cache: KVCache) -> Tensor:
    x = x.clone()
    stack.forward(x, metadata, cache)
    return x


@pytest.mark.parametrize("mode", list(TOLERANCE))
@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_agree_with_the_oracle(isa: str, name: str, mode: Modes) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    metadata = make_segments(MIXED)
    kv = _cache(metadata, family, mode)
    fast = KVCache(kv.k.clone(), kv.v.clone())
    x = torch.randn(int(metadata.cu_seqlens_q[-1]), family.hidden)
    want = _run(make_stack(family, mode, REFERENCE), x, metadata, kv)
    have = _run(make_stack(family, mode, COMPILED), x, metadata, fast)
    limit = TOLERANCE[mode]
    assert float((have - want).abs().amax() / want.abs().amax()) < limit
    for quick, slow in ((fast.k, kv.k), (fast.v, kv.v)):
        error = (quick.float() - slow.float()).abs().nan_to_num_(0).amax()
        assert float(error / slow.nan_to_num(0).abs().amax()) < limit
        assert torch.equal(quick.isnan(), slow.isnan())


@pytest.mark.parametrize("mode", list(TOLERANCE))
def test_a_prompt_in_pieces_gives_the_bits_of_the_whole(isa: str, mode: Modes) -> None:
    family = FAMILIES["llama"]
    stack = make_stack(family, mode, COMPILED)
    torch.manual_seed(0)
    whole = make_segments(causal(50))
    x = torch.randn(50, family.hidden)
    want = _run(stack, x, whole, _cache(whole, family, mode))
    for cuts in ([1] * 50, [7, 33, 10], [16, 16, 16, 2]):
        cache = _cache(whole, family, mode)
        pieces, start = [], 0
        for count in cuts:
            rows = slice(start, start + count)
            piece = replace(
                whole,
                cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
                context_lens=torch.tensor([start], dtype=torch.int32),
                parents=whole.parents[rows],
                positions=whole.positions[rows],
                slot_mapping=whole.slot_mapping[rows],
            )
            pieces.append(_run(stack, x[rows], piece, cache))
            start += count
        assert torch.equal(torch.cat(pieces), want)


@pytest.mark.parametrize("mode", list(TOLERANCE))
def test_a_sequence_does_not_depend_on_the_batch(isa: str, mode: Modes) -> None:
    family = FAMILIES["qwen3"]
    stack = make_stack(family, mode, COMPILED)
    torch.manual_seed(0)
    metadata = make_segments(causal(3, 9, 20, 1, 40))
    x = torch.randn(73, family.hidden)
    together = _run(stack, x, metadata, _cache(metadata, family, mode))
    for index in range(5):
        first, last = metadata.cu_seqlens_q[index : index + 2].tolist()
        alone = make_segments(causal(last - first))
        have = _run(stack, x[first:last], alone, _cache(alone, family, mode))
        assert torch.equal(have, together[first:last])


@pytest.mark.parametrize("mode", list(TOLERANCE))
def test_a_branch_has_the_bits_of_a_canvas_of_its_own(isa: str, mode: Modes) -> None:
    family = FAMILIES["qwen3"]
    stack = make_stack(family, mode, COMPILED)
    torch.manual_seed(0)
    metadata = make_segments([(21, 40, BRANCHES)])
    x = torch.randn(40, family.hidden)
    cache = _cache(metadata, family, mode)
    together = _run(stack, x, metadata, KVCache(cache.k.clone(), cache.v.clone()))
    for branch in range(3):
        rows = torch.nonzero(metadata.parents == branch)[:, 0]
        alone = AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, len(rows)], dtype=torch.int32),
            context_lens=metadata.context_lens,
            block_tables=metadata.block_tables,
            attention_modes=torch.tensor([FULL], dtype=torch.int32),
            parents=metadata.parents[rows],
            positions=metadata.positions[rows],
            slot_mapping=metadata.slot_mapping[: len(rows)],
        )
        have = _run(stack, x[rows], alone, KVCache(cache.k.clone(), cache.v.clone()))
        assert torch.equal(have, together[rows])


def test_scratch_of_an_earlier_pass_is_never_read(isa: str) -> None:
    family = FAMILIES["llama"]
    stack = make_stack(family, "int4", COMPILED)
    torch.manual_seed(0)
    metadata = make_segments(MIXED)
    cache = _cache(metadata, family, "int4")
    x = torch.randn(int(metadata.cu_seqlens_q[-1]), family.hidden)
    want = _run(stack, x, metadata, cache)
    bad = make_segments(causal(120))
    _run(stack, torch.full((120, family.hidden), torch.nan), bad, _cache(bad, family, "int4"))
    assert torch.equal(_run(stack, x, metadata, cache), want)


@pytest.mark.parametrize("mode", list(TOLERANCE))
@pytest.mark.parametrize("read", [[], [4], [73, 11, 12, 60, 11, 108, 40], range(109)], ids=str)
def test_rows_that_are_read_do_not_depend_on_the_others_being_read(
    isa: str, read: Sequence[int], mode: Modes
) -> None:
    family = FAMILIES["qwen3"]
    stack = make_stack(family, mode, COMPILED)
    torch.manual_seed(0)
    metadata = make_segments(MIXED)
    kv = _cache(metadata, family, mode)
    own_kv = KVCache(kv.k.clone(), kv.v.clone())
    x = torch.randn(int(metadata.cu_seqlens_q[-1]), family.hidden)
    want = _run(stack, x, metadata, kv)
    rows = torch.tensor(read, dtype=torch.int64)
    stack.forward(x, metadata, own_kv, read=rows)
    assert torch.equal(x[rows], want[rows])
    for have, all_read in ((own_kv.k, kv.k), (own_kv.v, kv.v)):
        assert torch.equal(have.nan_to_num(7), all_read.nan_to_num(7))


def test_layers_can_run_one_by_one(isa: str) -> None:
    family = FAMILIES["llama"]
    stack = make_stack(family, "bf16", COMPILED)
    torch.manual_seed(0)
    metadata = make_segments(causal(10))
    x, cache = torch.randn(10, family.hidden), _cache(metadata, family, "bf16")
    want = _run(stack, x, metadata, cache)
    for layer in range(LAYERS):
        stack.forward(x, metadata, cache, first_layer=layer, last_layer=layer + 1)
    assert torch.equal(x, want)


@both_backends
def test_layers_with_block_tables_of_their_own_give_the_same_bits(
    isa: str, backend: KernelBackend
) -> None:
    family = FAMILIES["qwen3"]
    stack = make_stack(family, "bf16", backend)
    torch.manual_seed(0)
    shared = make_segments(MIXED)
    kv = _cache(shared, family, "bf16")
    x = torch.randn(int(shared.cu_seqlens_q[-1]), family.hidden)
    moved = torch.stack([torch.randperm(kv.k.shape[1]) for _ in range(LAYERS)])
    own_kv = KVCache(torch.empty_like(kv.k), torch.empty_like(kv.v))
    for layer, places in enumerate(moved):
        own_kv.k[layer, places], own_kv.v[layer, places] = kv.k[layer], kv.v[layer]
    tables, slots = shared.block_tables, shared.slot_mapping
    own = replace(
        shared,
        block_tables=torch.where(tables < 0, tables, moved[:, tables.clamp(min=0)].int()),
        slot_mapping=moved[:, slots // BLOCK_SIZE] * BLOCK_SIZE + slots % BLOCK_SIZE,
    )
    assert torch.equal(_run(stack, x, own, own_kv), _run(stack, x, shared, kv))
    for layer, places in enumerate(moved):
        have, want = own_kv.k[layer, places], kv.k[layer]
        assert torch.equal(have.nan_to_num(7), want.nan_to_num(7))


def test_block_tables_of_other_layers_are_refused() -> None:
    family = FAMILIES["llama"]
    stack = make_stack(family, "bf16", COMPILED)
    metadata = make_segments(causal(4))
    tables = metadata.block_tables.expand(LAYERS + 1, -1, -1).contiguous()
    with pytest.raises(ValueError, match=f"of {LAYERS + 1} layers, not {LAYERS}"):
        _run(
            stack,
            torch.zeros(4, family.hidden),
            replace(metadata, block_tables=tables),
            _cache(metadata, family, "bf16"),
        )


def test_what_does_not_fit_is_refused() -> None:
    family = FAMILIES["llama"]
    stack = make_stack(family, "bf16", COMPILED)
    metadata = make_segments(causal(4))
    kv = _cache(metadata, family, "bf16")
    x = torch.zeros(4, family.hidden)
    with pytest.raises(ValueError, match="not of this model"):
        stack.forward(x, metadata, KVCache(kv.k[:2], kv.v[:2]))
    with pytest.raises(ValueError, match="hidden size"):
        stack.forward(x[:, :8].contiguous(), metadata, kv)
    with pytest.raises(ValueError, match="must have 3 entries"):
        stack.forward(x[:3], metadata, kv)
    with pytest.raises(IndexError, match="rotary tables end"):
        far = replace(metadata, positions=metadata.positions + 1000)
        stack.forward(x, far, kv)
    for row in (-1, 4):
        with pytest.raises(IndexError, match="not of 4 rows"):
            stack.forward(x, metadata, kv, read=torch.tensor([row]))
    with pytest.raises(IndexError, match="no layers"):
        stack.forward(x, metadata, kv, 0, 9)


@pytest.mark.parametrize("mode", TOLERANCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_paths_have_the_same_bits(name: str, mode: Modes) -> None:
    family = FAMILIES[name]
    stack, metadata = make_stack(family, mode, COMPILED), make_segments(MIXED)
    x = torch.randn(int(metadata.cu_seqlens_q[-1]), family.hidden)
    cache = _cache(metadata, family, mode)
    want: Tensor | None = None
    for path in isas_alike(bf16=mode in ("bf16", "mixed")):
        with using_isa(path):
            have = _run(stack, x, metadata, KVCache(cache.k.clone(), cache.v.clone()))
        want = have if want is None else want
        assert torch.equal(have, want), path


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_threads_do_not_change_bits(threads: int) -> None:
    """Also more of them than cores: those that are put off find stages ended without them."""
    family = FAMILIES["llama"]
    stack, metadata = make_stack(family, "int4", COMPILED), make_segments(MIXED)
    x = torch.randn(int(metadata.cu_seqlens_q[-1]), family.hidden)
    cache = _cache(metadata, family, "int4")

    def run() -> Tensor:
        return _run(stack, x, metadata, KVCache(cache.k.clone(), cache.v.clone()))

    before = torch.get_num_threads()
    want = run()
    try:
        torch.set_num_threads(threads)
        for _ in range(20):
            assert torch.equal(run(), want)
    finally:
        torch.set_num_threads(before)
