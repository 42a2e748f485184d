"""A decoder layer step by step: of oracles, the oracle and what serves on other devices.

Of the compiled kernels it serves models with experts, whose layers are not compiled whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from plait.kernels import elementwise, linear, paged_attention
from plait.kernels import moe as _experts
from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.elementwise.reference import rms_norm as rms_norm_naive
from plait.kernels.elementwise.reference import rope, silu_mul, write_kv
from plait.kernels.linear.reference import linear as linear_naive
from plait.kernels.moe.reference import experts as experts_naive
from plait.kernels.moe.routed import silu_mul as silu_mul_steady
from plait.kernels.paged_attention import AttentionMetadata
from plait.kernels.paged_attention.reference import paged_attention as attention_naive


class Steps(NamedTuple):
    """What a layer consists of; signatures as in the kernels' folders."""

    rms_norm: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    paged_attention: Callable[..., Tensor]
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    experts: Callable[..., Tensor]


ORACLES = Steps(rms_norm_naive, linear_naive, attention_naive, silu_mul, experts_naive)
COMPILED = Steps(
    elementwise.rms_norm,
    linear.linear,
    paged_attention.paged_attention,
    silu_mul_steady,
    _experts.experts,
)


def run_layer(
    x: Tensor,
    layer: LayerWeights,
    config: StackConfig,
    metadata: AttentionMetadata,
    kv: tuple[Tensor, Tensor],
    steps: Steps = ORACLES,
) -> None:
    """Add one layer to the residual stream x [rows, hidden] fp32, in place.

    kv: keys [num_blocks, kv_heads, head_dim, 16] and values [num_blocks, kv_heads, 16, head_dim]
    of this layer; the rows' own are written into it.
    """
    h = steps.rms_norm(x, layer.attn_norm, config.norm_eps)
    q, k, v = _heads(h, layer, config, metadata, steps)
    write_kv(k, v, *kv, metadata.slot_mapping)
    read = steps.paged_attention(q, *kv, metadata, scale=config.scale, window=layer.window)
    x += steps.linear(read.flatten(1), layer.o, layer.o_bias)
    h = steps.rms_norm(x, layer.ffn_norm, config.norm_eps)
    gate = steps.linear(h, layer.gate, layer.gate_bias)
    up = steps.linear(h, layer.up, layer.up_bias)
    x += steps.linear(steps.silu_mul(gate, up), layer.down, layer.down_bias)
    if layer.experts is not None:
        x += steps.experts(h, layer.experts)


def _heads(
    h: Tensor, layer: LayerWeights, config: StackConfig, metadata: AttentionMetadata, steps: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [rows, heads or kv_heads, head_dim], normed and rotated."""
    dim = config.head_dim
    q = steps.linear(h, layer.q, layer.q_bias).view(-1, dim)
    k = steps.linear(h, layer.k, layer.k_bias).view(-1, dim)
    v = steps.linear(h, layer.v, layer.v_bias).view(-1, config.kv_heads, dim)
    if layer.q_norm is not None:
        q = steps.rms_norm(q, layer.q_norm, config.norm_eps)
    if layer.k_norm is not None:
        k = steps.rms_norm(k, layer.k_norm, config.norm_eps)
    q, k = q.view(-1, config.heads, dim), k.view(-1, config.kv_heads, dim)
    if layer.rotary:
        q = rope(q, config.cos, config.sin, metadata.positions)
        k = rope(k, config.cos, config.sin, metadata.positions)
    return q, k, v
