"""Times one forward pass (decoder stack and output matrix) on random weights.

Shapes of SmolLM2-135M unless said otherwise. A time is the fastest of many calls: the best guess
of what the kernels need on a machine that is never quite idle.

    python benchmarks/kernels.py --modes int4 bf16 --rows 1 8 512
    python benchmarks/kernels.py --attention --rows 1 8 256 2048 --context 1000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.decoder_stack import DecoderStack, LayerWeights, StackConfig
from plait.kernels.dispatch import cpu_backend
from plait.kernels.kv_cache import KVCache, KVCacheShape
from plait.kernels.linear import Mode, Weight, from_dense
from plait.kernels.paged_attention import BLOCK_SIZE, AttentionMetadata

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 30, 576, 9, 3, 64, 1536, 49152


@dataclass(frozen=True, slots=True)
class Bench:
    """A random model and its cache."""

    stack: DecoderStack
    head: Weight
    kv: KVCache

    def forward(self, x: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Run all layers and the output matrix; logits of at most 64 rows, as a server asks."""
        x = x.clone()  # the stack works in place
        self.stack.forward(x, metadata, self.kv)
        return cpu_backend().linear(x[:64], self.head)


def build(mode: Mode, head_mode: Mode, num_blocks: int) -> Bench:
    """Make a model with all linears in `mode`."""

    backend = cpu_backend()

    def weight(n: int, k: int) -> Weight:
        return backend.pack(from_dense(torch.randn(n, k) * k**-0.5, mode))

    def layer() -> LayerWeights:
        return LayerWeights(
            attn_norm=torch.ones(HIDDEN),
            q=weight(HEADS * HEAD_DIM, HIDDEN),
            k=weight(KV_HEADS * HEAD_DIM, HIDDEN),
            v=weight(KV_HEADS * HEAD_DIM, HIDDEN),
            o=weight(HIDDEN, HEADS * HEAD_DIM),
            ffn_norm=torch.ones(HIDDEN),
            gate=weight(FFN, HIDDEN),
            up=weight(FFN, HIDDEN),
            down=weight(HIDDEN, FFN),
        )

    angles = torch.arange(8192).outer(100000.0 ** -torch.arange(0, 1, 2 / HEAD_DIM))
    config = StackConfig(
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        ffn=FFN,
        norm_eps=1e-5,
        scale=HEAD_DIM**-0.5,
        cos=angles.cos(),
        sin=angles.sin(),
    )
    stack = backend.decoder_stack([layer() for _ in range(LAYERS)], config)
    head = backend.pack(from_dense(torch.randn(VOCAB, HIDDEN) * HIDDEN**-0.5, head_mode))
    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    shape = KVCacheShape(LAYERS, KV_HEADS, HEAD_DIM, dtype)
    kv = backend.new_kv_cache(shape, num_blocks)
    kv.k.normal_()  # or the system would show one page of zeros, which stays in the cache
    kv.v.normal_()
    return Bench(stack, head, kv)


def decode_rows(rows: int, context: int) -> AttentionMetadata:
    """One new token for each of `rows` sequences, which took their blocks in turns."""
    blocks = context // BLOCK_SIZE + 1
    tables = torch.arange(rows * blocks, dtype=torch.int32).view(blocks, rows).t().contiguous()
    return AttentionMetadata(
        cu_seqlens_q=torch.arange(rows + 1, dtype=torch.int32),
        context_lens=torch.full((rows,), context, dtype=torch.int32),
        block_tables=tables,
        attention_modes=torch.zeros(rows, dtype=torch.int32),
        parents=torch.zeros(rows, dtype=torch.int32),
        positions=torch.full((rows,), context, dtype=torch.int32),
        slot_mapping=tables[:, context // BLOCK_SIZE].long() * BLOCK_SIZE + context % BLOCK_SIZE,
    )


def prompt_rows(rows: int) -> AttentionMetadata:
    """One prompt of `rows` tokens."""
    blocks = -(-rows // BLOCK_SIZE)
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, rows], dtype=torch.int32),
        context_lens=torch.zeros(1, dtype=torch.int32),
        block_tables=torch.arange(blocks, dtype=torch.int32).view(1, -1),
        attention_modes=torch.zeros(1, dtype=torch.int32),
        parents=torch.zeros(rows, dtype=torch.int32),
        positions=torch.arange(rows, dtype=torch.int32),
        slot_mapping=torch.arange(rows),
    )


def fastest(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of one call, in ms, among those that fit into `seconds`."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best * 1e3


def measure(mode: Mode, rows: Sequence[int], context: int, seconds: float) -> list[str]:
    """Return one cell for every number of rows: whole pass, and the stack alone."""
    num_blocks = max(rows) * (context // BLOCK_SIZE + 1)
    bench = build(mode, "int8" if mode.startswith("int4") else mode, num_blocks)
    cells = []
    for count in rows:
        metadata = prompt_rows(count) if count > 64 else decode_rows(count, context)
        x = torch.randn(count, HIDDEN)
        whole = fastest(partial(bench.forward, x, metadata), seconds)
        head = fastest(partial(cpu_backend().linear, x[:64], bench.head), seconds / 4)
        cells.append(f"{whole:.1f} ({whole - head:.1f})")
    return cells


def fp32_rate(seconds: float) -> float:
    """Return the fp32 multiply-adds of torch's own product, in GFLOP/s: what the threads can do."""
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / fastest(partial(torch.mm, a, b), seconds) / 1e6


def time_attention(dtype: torch.dtype, rows: int, context: int, seconds: float, rate: float) -> str:
    """Return ms of a layer's attention; its share of `rate`, or how fast it reads keys and values.

    Rows of a prompt multiply, rows that decode read. A call goes through the caches of up to 30
    layers (1 GB at most), as a model's pass does.
    """
    metadata = prompt_rows(rows) if rows > 64 else decode_rows(rows, context)
    blocks = metadata.block_tables.numel()
    num_bytes = KVCacheShape(1, KV_HEADS, HEAD_DIM, dtype).block_bytes * blocks
    layers = max(1, min(LAYERS, 2**30 // num_bytes))
    shape = KVCacheShape(layers, KV_HEADS, HEAD_DIM, dtype)
    kv = cpu_backend().new_kv_cache(shape, blocks)
    kv.k.normal_()
    kv.v.normal_()
    q = torch.randn(rows, HEADS, HEAD_DIM)
    attention = partial(cpu_backend().paged_attention, q, scale=HEAD_DIM**-0.5, metadata=metadata)

    def read_all() -> None:
        for pair in zip(kv.k, kv.v, strict=True):
            attention(kv_layer=pair)

    ms = fastest(read_all, seconds) / layers
    if rows <= 64:
        return f"{ms:.3f} ({num_bytes / ms / 1e6:.1f} GB/s)"
    speed = 2 * HEADS * HEAD_DIM * rows * (rows + 1) / ms / 1e6
    return f"{ms:.3f} ({speed:.0f} GFLOP/s, {speed / rate:.0%})"


def measure_attention(mode: Mode, rows: Sequence[int], context: int, seconds: float) -> list[str]:
    """Return one cell for every number of rows, with the cache that `mode` has."""
    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    rate = fp32_rate(seconds)
    return [time_attention(dtype, count, context, seconds, rate) for count in rows]


def main() -> None:
    """Print a table: ms of a whole pass (of the stack alone), or of the attention of a layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=["int4", "int4fixed", "bf16", "fp32"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 512])
    parser.add_argument("--context", type=int, default=100, help="cached tokens of a decode row")
    parser.add_argument("--seconds", type=float, default=1.0, help="for every cell")
    parser.add_argument("--isa", default="", help="instead of the best one")
    parser.add_argument("--attention", action="store_true", help="of one layer, alone")
    arguments = parser.parse_args()
    if arguments.isa:
        extension.use_isa(arguments.isa)
    torch.manual_seed(0)
    timed = measure_attention if arguments.attention else measure
    what = "ms a layer" if arguments.attention else "ms a pass (stack alone)"
    print(f"{extension.isa()}, {torch.get_num_threads()} threads, {what}")
    print("| rows |", " | ".join(map(str, arguments.rows)), "|")
    for mode in arguments.modes:
        cells = timed(mode, arguments.rows, arguments.context, arguments.seconds)
        print(f"| {mode} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
