"""The backend of CPUs: the C++ kernels of `plait.kernels._cpu`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.backend import KernelBackend
from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.decoder_stack.stack import CompiledDecoderStack, DecoderStack
from plait.kernels.host_memory import Arena
from plait.kernels.kv_cache import KVCache
from plait.kernels.linear import Weight
from plait.kernels.linear.packing import pack_weight
from plait.kernels.moe import ExpertWeights
from plait.kernels.moe import routed as moe
from plait.kernels.noise import NoiseRow
from plait.kernels.paged_attention import AttentionMetadata, AttentionSegment
from plait.kernels.row_stats import RowLogprobs, RowStats


class CompiledCpuBackend(KernelBackend):
    """The compiled kernels. Law: no row's bits depend on the other rows of a call."""

    name = "compiled_cpu"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._cpu = extension.load()
        self._weights = Arena()
        self._noise = torch.ops.plait_noise
        self._row_stats = torch.ops.plait_row_stats

    @classmethod
    def unsupported(cls, device: torch.device) -> str:
        """Return why the compiled kernels can't run on a device; empty: they can."""
        if device.type != "cpu":
            return f"they are compiled for CPUs, not for {device.type}"
        return extension.missing()

    def operations(self) -> dict[str, str]:
        """Return the instruction sets of each operation, see extension.describe."""
        return extension.describe()

    def pack_segments(self, pieces: Sequence[AttentionSegment]) -> tuple[Tensor, AttentionMetadata]:
        """See KernelBackend. Cost: O(rows and blocks), some 10 ns each."""
        token_ids, *fields = self._cpu.pack_segments(pieces)
        return token_ids, AttentionMetadata(*fields)

    def pack(self, weight: Weight) -> Weight:
        """Return the weight in panels, see linear/packing.py."""
        panels = pack_weight(weight.mode, weight.values, weight.scale, weight.minimum)
        values = self._weights.keep(panels)
        return replace(weight, layout="panels", values=values, scale=None, minimum=None)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """See KernelBackend; the weight is packed."""
        out: Tensor = self._cpu.linear(x, weight.mode, weight.n, weight.values, bias)
        return out

    def take_rows(self, weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See KernelBackend; the weight is packed. Cost: some 2 ns a number.

        Raises:
            IndexError: there is no such row.
        """
        half = dtype == torch.bfloat16
        rows: Tensor = self._cpu.take_rows(
            weight.mode, weight.n, weight.k, weight.values, ids, half
        )
        return rows

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """See KernelBackend."""
        out: Tensor = self._cpu.rms_norm(x, gain, eps)
        return out

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """See KernelBackend; torch's own rounds an element by where it lies in memory."""
        return moe.silu_mul(gate, up)

    def routed_experts(self, x: Tensor, weights: ExpertWeights) -> Tensor:
        """See KernelBackend; an expert sees the rows that chose it, together."""
        return moe.routed_experts(x, weights, self.linear)

    def paged_attention(
        self,
        q: Tensor,
        kv_layer: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int = 0,
    ) -> Tensor:
        """See KernelBackend."""
        out: Tensor = self._cpu.paged_attention(q, *kv_layer, metadata, scale, window)
        return out

    def decoder_stack(self, layers: Sequence[LayerWeights], config: StackConfig) -> DecoderStack:
        """Return all layers in one call of C++, or step by step where `unfused` has a reason."""
        if unfused(layers):
            return super().decoder_stack(layers, config)
        return CompiledDecoderStack(layers, config, self)

    def copy_blocks(self, kv: KVCache, src: Tensor, dst: Tensor) -> None:
        """See KernelBackend."""
        self._cpu.copy_blocks(kv.k, kv.v, src, dst)

    def move_slots(self, kv: KVCache, src: Tensor, dst: Tensor) -> None:
        """See KernelBackend."""
        self._cpu.move_slots(kv.k, kv.v, src, dst)

    def gumbel(self, keys: Tensor, num_tokens: int) -> Tensor:
        """See KernelBackend. Cost: 1 (AVX-512) to 4 ns (AVX2) a value and core."""
        out: Tensor = self._noise.gumbel(keys, num_tokens)
        return out

    def gumbel_argmax(
        self,
        scores: Tensor,
        keys: Tensor,
        *,
        temperatures: Tensor | None = None,
        rows: Tensor | None = None,
        bitmask: Tensor | None = None,
    ) -> Tensor:
        """See KernelBackend. Neither the noise nor the scaled scores are stored.

        Cost: one pass over the scores, and noise for the groups of 64 tokens that may win: at
        temperature 1 some 0.1 ms a row and core for 49,152 tokens that a model has scored (AVX2).
        Stretches of a bitmask without a legal token cost next to nothing.
        """
        out: Tensor = self._noise.gumbel_argmax(scores, keys, temperatures, rows, bitmask)
        return out

    def draw_rows(
        self, scores: Tensor, keys: Sequence[NoiseRow], temperatures: Sequence[float]
    ) -> list[int]:
        """See KernelBackend and gumbel_argmax."""
        tokens: list[int] = self._cpu.draw_rows(scores, keys, temperatures)
        return tokens

    def row_stats(self, scores: Tensor, *, entropy: bool = True) -> RowStats:
        """See KernelBackend."""
        top_ids, top_scores, stats = self._row_stats.row_stats(scores, entropy)
        return RowStats(top_ids, top_scores, *stats.unbind(1))

    def row_logprobs(
        self, scores: Tensor, token_ids: Tensor, k: int, *, rows: Tensor | None = None
    ) -> RowLogprobs:
        """See KernelBackend."""
        return RowLogprobs(*self._row_stats.logprobs(scores, token_ids, k, rows))

    def legal_mass(
        self, scores: Tensor, bitmask: Tensor, temperatures: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """See KernelBackend."""
        out: Tensor = self._row_stats.legal_mass(scores, bitmask, temperatures, rows)
        return out

    def apply_bitmask(self, scores: Tensor, bitmask: Tensor) -> None:
        """See KernelBackend."""
        self._row_stats.apply_bitmask_(scores, bitmask)

    def apply_top_k_top_p(
        self, scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> None:
        """See KernelBackend. Cost: O(vocab) a row and a sort of the tokens near the cut."""
        reach = (-min_p.log()).to(torch.float32)
        self._row_stats.truncate_(scores, top_k, top_p, reach)


def unfused(layers: Sequence[LayerWeights]) -> str:
    """Return why layers can't run in one call of C++; empty: they can."""
    if any(layer.experts is not None for layer in layers):
        return "routed experts have no kernel inside of the compiled stack"
    return ""
