"""The oracle of the decoder stack, and what serves on other devices."""

from __future__ import annotations

from torch import Tensor

from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.glue.naive import rms_norm, rope, silu_mul, write_kv
from plait.kernels.linear.naive import linear
from plait.kernels.paged_attention import Segments
from plait.kernels.paged_attention.naive import paged_attention


def run_layer(
    x: Tensor,
    layer: LayerWeights,
    config: StackConfig,
    segments: Segments,
    kv: tuple[Tensor, Tensor],
) -> None:
    """Add one layer to the residual stream x [rows, hidden] fp32, in place.

    kv: keys [num_blocks, kv_heads, head_dim, 16] and values [num_blocks, kv_heads, 16, head_dim]
    of this layer; the rows' own are written into it.
    """
    h = rms_norm(x, layer.attn_norm, config.norm_eps)
    q, k, v = _heads(h, layer, config, segments)
    write_kv(k, v, *kv, segments.slots)
    read = paged_attention(q, *kv, segments, scale=config.scale, window=layer.window)
    x += linear(read.flatten(1), layer.o, layer.o_bias)
    h = rms_norm(x, layer.ffn_norm, config.norm_eps)
    gate = linear(h, layer.gate, layer.gate_bias)
    up = linear(h, layer.up, layer.up_bias)
    x += linear(silu_mul(gate, up), layer.down, layer.down_bias)


def _heads(
    h: Tensor, layer: LayerWeights, config: StackConfig, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [rows, heads or kv_heads, head_dim], normed and rotated."""
    rows, dim = h.shape[0], config.head_dim
    q = linear(h, layer.q, layer.q_bias).view(rows, config.heads, dim)
    k = linear(h, layer.k, layer.k_bias).view(rows, config.kv_heads, dim)
    v = linear(h, layer.v, layer.v_bias).view(rows, config.kv_heads, dim)
    if layer.q_norm is not None:
        q = rms_norm(q, layer.q_norm, config.norm_eps)
    if layer.k_norm is not None:
        k = rms_norm(k, layer.k_norm, config.norm_eps)
    if layer.rotary:
        q = rope(q, config.cos, config.sin, segments.positions)
        k = rope(k, config.cos, config.sin, segments.positions)
    return q, k, v
