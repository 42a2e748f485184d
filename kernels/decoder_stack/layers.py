"""The weights and the shape of a stack of decoder layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plait.kernels.linear import Weight
from plait.kernels.moe import ExpertWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One pre-norm layer: attention, then SwiGLU. Gains and biases are fp32 vectors."""

    attn_norm: Tensor  # [hidden]
    q: Weight  # [heads * head_dim, hidden]
    k: Weight  # [kv_heads * head_dim, hidden]
    v: Weight
    o: Weight  # [hidden, heads * head_dim]
    ffn_norm: Tensor  # [hidden]
    gate: Weight  # [ffn, hidden]
    up: Weight
    down: Weight  # [hidden, ffn]
    q_norm: Tensor | None = None  # [head_dim], RMS norm of every head before the rotation
    k_norm: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    window: int = 0  # a row sees keys above its position minus this; 0: all
    rotary: bool = True  # False: no positions in this layer
    experts: ExpertWeights | None = None  # their output is added to that of gate, up and down


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The shape and the constants that all layers of a stack share."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    scale: float  # of the attention scores, usually head_dim ** -0.5
    cos: Tensor  # [max_positions, rotary_dim / 2] fp32
    sin: Tensor
