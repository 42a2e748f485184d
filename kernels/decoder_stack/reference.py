"""One decoder layer, operation by operation: the reference, and what runs layers with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.elementwise.reference import rope, write_kv
from plait.kernels.paged_attention import AttentionMetadata

if TYPE_CHECKING:
    from plait.kernels.backend import KernelBackend


def run_layer(
    x: Tensor,
    layer: LayerWeights,
    config: StackConfig,
    metadata: AttentionMetadata,
    kv_layer: tuple[Tensor, Tensor],
    backend: KernelBackend,
) -> None:
    """Add one layer to the residual stream x [rows, hidden] fp32, in place.

    Args:
        metadata: of this layer, see AttentionMetadata.at_layer.
        kv_layer: keys [num_blocks, kv_heads, head_dim, 16] and values [num_blocks, kv_heads, 16,
            head_dim] of this layer; the rows' own are written into them.
    """
    h = backend.rms_norm(x, layer.attn_norm, config.norm_eps)
    q, k, v = _heads(h, layer, config, metadata, backend)
    write_kv(k, v, *kv_layer, metadata.slot_mapping)
    read = backend.paged_attention(q, kv_layer, metadata, scale=config.scale, window=layer.window)
    x += backend.linear(read.flatten(1), layer.o, layer.o_bias)
    h = backend.rms_norm(x, layer.ffn_norm, config.norm_eps)
    gate = backend.linear(h, layer.gate, layer.gate_bias)
    up = backend.linear(h, layer.up, layer.up_bias)
    x += backend.linear(backend.silu_mul(gate, up), layer.down, layer.down_bias)
    if layer.experts is not None:
        x += backend.routed_experts(h, layer.experts)


def _heads(
    h: Tensor,
    layer: LayerWeights,
    config: StackConfig,
    metadata: AttentionMetadata,
    backend: KernelBackend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [rows, heads or kv_heads, head_dim], normed and rotated."""
    dim = config.head_dim
    q = backend.linear(h, layer.q, layer.q_bias).view(-1, dim)
    k = backend.linear(h, layer.k, layer.k_bias).view(-1, dim)
    v = backend.linear(h, layer.v, layer.v_bias).view(-1, config.kv_heads, dim)
    if layer.q_norm is not None:
        q = backend.rms_norm(q, layer.q_norm, config.norm_eps)
    if layer.k_norm is not None:
        k = backend.rms_norm(k, layer.k_norm, config.norm_eps)
    q, k = q.view(-1, config.heads, dim), k.view(-1, config.kv_heads, dim)
    if layer.rotary:
        q = rope(q, config.cos, config.sin, metadata.positions)
        k = rope(k, config.cos, config.sin, metadata.positions)
    return q, k, v
