"""The kernels of one device. A backend is chosen when a model is loaded and owns all operations.

`KernelBackend` itself is the reference: plain torch, on any device. A backend for one kind of
device overrides what it has a faster kernel for and inherits the rest. Law: what it overrides
agrees with the reference (tests/oracle/test_kernels_*). The functions of `<operation>/reference.py`
document arguments, laws and costs; shapes and sources are in the docstrings of the packages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.decoder_stack.stack import DecoderStack
from plait.kernels.elementwise import reference as elementwise
from plait.kernels.kv_cache import KVCache, KVCacheShape, new_kv_cache
from plait.kernels.kv_copy import reference as kv_copy
from plait.kernels.linear import Weight, take_rows
from plait.kernels.linear import reference as linear
from plait.kernels.moe import ExpertWeights
from plait.kernels.moe import reference as moe
from plait.kernels.noise import NoiseRow
from plait.kernels.noise import reference as noise
from plait.kernels.paged_attention import AttentionMetadata, AttentionSegment, segments
from plait.kernels.paged_attention import reference as paged_attention
from plait.kernels.row_stats import RowLogprobs, RowStats
from plait.kernels.row_stats import reference as row_stats


class KernelBackend:
    """The reference backend: every operation in plain torch.

    The tensors that an operation takes are on the backend's device, and so are its results.
    """

    name = "reference"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def unsupported(cls, device: torch.device) -> str:
        """Return why this backend can't run on a device; empty: it can."""
        return ""

    def tensor(self, values: ArrayLike, dtype: torch.dtype) -> Tensor:
        """Return values of the host as a tensor on the device; the buffers of a pass."""
        return torch.as_tensor(np.asarray(values)).to(device=self.device, dtype=dtype)

    def pack_segments(self, pieces: Sequence[AttentionSegment]) -> tuple[Tensor, AttentionMetadata]:
        """Return the token ids [rows] int64 and the metadata of a pass, on the device."""
        token_ids, metadata = segments.pack_segments(pieces)
        return token_ids.to(self.device), metadata.to(self.device)

    # The layers of a model.

    def operations(self) -> dict[str, str]:
        """Say for each operation, in words, what serves it where there is a choice."""
        return {}

    def pack(self, weight: Weight) -> Weight:
        """Return a weight of layout "rows" in the layout that `linear` reads fastest."""
        return weight

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """Return x [m, k] @ weight.T + bias, [m, n] fp32."""
        return linear.linear(x, weight, bias)

    def take_rows(self, weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return rows ids [m] int64 of a weight, rounded to a dtype, [m, k] fp32."""
        return take_rows(weight, ids).to(dtype).float()

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * gain for every row of x [rows, n], fp32."""
        return elementwise.rms_norm(x, gain, eps)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up, fp32."""
        return elementwise.silu_mul(gate, up)

    def routed_experts(self, x: Tensor, weights: ExpertWeights) -> Tensor:
        """Return the experts' outputs for x [rows, hidden] times their shares, summed, fp32."""
        return moe.routed_experts(x, weights)

    def paged_attention(
        self,
        q: Tensor,
        kv_layer: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int = 0,
    ) -> Tensor:
        """Return what each row of q [rows, heads, head_dim] reads from one layer's cache, fp32."""
        return paged_attention.paged_attention(q, *kv_layer, metadata, scale=scale, window=window)

    def decoder_stack(self, layers: Sequence[LayerWeights], config: StackConfig) -> DecoderStack:
        """Return the layers of a model, ready to run."""
        return DecoderStack(layers, config, self)

    # The KV cache.

    def new_kv_cache(self, shape: KVCacheShape, num_blocks: int) -> KVCache:
        """Return an empty cache; errors as of kv_cache.new_kv_cache."""
        return new_kv_cache(shape, num_blocks, self.device)

    def copy_blocks(self, kv: KVCache, src: Tensor, dst: Tensor) -> None:
        """Copy whole blocks src [n] to dst [n] in all layers."""
        kv_copy.copy_blocks(kv, src, dst)

    def move_slots(self, kv: KVCache, src: Tensor, dst: Tensor) -> None:
        """Copy the tokens in slots src [n] to slots dst [n] in all layers."""
        kv_copy.move_slots(kv, src, dst)

    # Sampling and statistics of logits.

    def gumbel(self, keys: Tensor, num_tokens: int) -> Tensor:
        """Return the noise of keys [b, 3], [b, num_tokens] fp32."""
        return noise.gumbel(keys, num_tokens)

    def gumbel_argmax(
        self,
        scores: Tensor,
        keys: Tensor,
        *,
        temperatures: Tensor | None = None,
        rows: Tensor | None = None,
        bitmask: Tensor | None = None,
    ) -> Tensor:
        """Return the draws [b] int64 from scores / temperatures under the noise of keys [b, 3]."""
        return noise.gumbel_argmax(scores, keys, temperatures, rows, bitmask)

    def draw_rows(
        self, scores: Tensor, keys: Sequence[NoiseRow], temperatures: Sequence[float]
    ) -> list[int]:
        """Return `gumbel_argmax` of all rows, from and to numbers of the host."""
        tokens: list[int] = self.gumbel_argmax(
            scores,
            self.tensor(keys, torch.int64).view(-1, 3),
            temperatures=self.tensor(temperatures, torch.float32),
        ).tolist()
        return tokens

    def row_stats(self, scores: Tensor, *, entropy: bool = True) -> RowStats:
        """Return the statistics of each row of scores [b, vocab]."""
        return row_stats.row_stats(scores, entropy)

    def row_logprobs(
        self, scores: Tensor, token_ids: Tensor, k: int, *, rows: Tensor | None = None
    ) -> RowLogprobs:
        """Return the log-probabilities of token_ids [b] and of the k best tokens of each row."""
        return row_stats.row_logprobs(scores, token_ids, k, rows)

    def legal_mass(
        self, scores: Tensor, bitmask: Tensor, temperatures: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """Return the log of the probability [b] of each row's legal tokens."""
        return row_stats.legal_mass(scores, bitmask, temperatures, rows)

    def apply_bitmask(self, scores: Tensor, bitmask: Tensor) -> None:
        """Set the scores of illegal tokens to -inf, in place."""
        row_stats.apply_bitmask(scores, bitmask)

    def apply_top_k_top_p(
        self, scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> None:
        """Set the scores outside of each row's top k, top p and min p to -inf, in place."""
        row_stats.apply_top_k_top_p(scores, top_k, top_p, min_p)
