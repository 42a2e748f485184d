"""The tiny model with gradients: the served forward pass, over packed copies of one text.

Same mathematics as plait.server.models (a test compares them): pre-norm, RMS norm of every query
and key head, rotate-half RoPE, gated SiLU, tied embeddings. Source of the layout: SDAR, which is
Qwen3 with a block-causal mask. What a position sees is given from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.server.models.checkpoint import EMBEDDING, FINAL_NORM, layer_prefix
from plait.server.models.rope import tables
from plait.server.models.spec import ModelSpec, RopeSpec

INIT_STD = 0.02


@dataclass(frozen=True, slots=True)
class Inputs:
    """The positions of a batch, laid end to end, and where each stands in the padded batch."""

    tokens: Tensor  # [n] int64
    positions: Tensor  # [n] int64
    rows: Tensor  # [n] int64, place in [batch * length]
    allowed: Tensor  # [batch, 1, length, length] bool: query sees key; padding sees itself


def tiny_spec(vocab: int, *, hidden: int = 160, layers: int = 5, ffn: int = 448) -> ModelSpec:
    """Describe the model; all inner sizes are multiples of 32, which quantised kernels want."""
    head_dim = 32
    return ModelSpec(
        family="sdar",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=hidden // head_dim,
        kv_heads=hidden // head_dim,
        head_dim=head_dim,
        ffn=ffn,
        norm_eps=1e-6,
        max_positions=1024,
        rope=RopeSpec(1e4, head_dim),
        windows=(0,) * layers,
        rotary=(True,) * layers,
        qk_norm=True,
        tied_embeddings=True,
    )


class Network(nn.Module):
    """The trainable model. Matrices of one kind are stacked over layers, so that Muon is quick."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        d, ffn, layers = spec.hidden, spec.ffn, spec.layers
        if d != spec.heads * spec.head_dim or spec.heads != spec.kv_heads:
            raise ValueError("as many key heads as query heads, which together are as wide as x")
        self.spec = spec
        out = INIT_STD / (2 * layers) ** 0.5  # what adds to the stream, so that depth adds up to 1
        self.embedding = nn.Parameter(INIT_STD * torch.randn(spec.vocab, d))
        self.qkv = nn.Parameter(d**-0.5 * torch.randn(layers, 3 * d, d))
        self.o = nn.Parameter(out * torch.randn(layers, d, d))
        self.gate_up = nn.Parameter(d**-0.5 * torch.randn(layers, 2 * ffn, d))
        self.down = nn.Parameter(out * torch.randn(layers, d, ffn))
        self.attn_norm = nn.Parameter(torch.ones(layers, d))
        self.ffn_norm = nn.Parameter(torch.ones(layers, d))
        self.qk_norm = nn.Parameter(torch.ones(layers, 2, spec.head_dim))
        self.final_norm = nn.Parameter(torch.ones(d))
        cos, sin = tables(spec.rope, spec.max_positions)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, inputs: Inputs, wanted: Tensor) -> Tensor:
        """Return the logits of the `wanted` positions (indices into n), [wanted, vocab] fp32."""
        spec, eps = self.spec, self.spec.norm_eps
        x = self.embedding[inputs.tokens]
        cos, sin = (table[inputs.positions][:, None] for table in (self.cos, self.sin))
        stacked = (self.qkv, self.o, self.gate_up, self.down)
        norms = (self.attn_norm, self.ffn_norm, self.qk_norm)
        for layer in zip(*(weight.unbind() for weight in (*stacked, *norms)), strict=True):
            qkv, o, gate_up, down, attn_norm, ffn_norm, qk_norm = layer
            heads = F.linear(F.rms_norm(x, (spec.hidden,), attn_norm, eps), qkv)
            seen = self._attend(heads, inputs, cos, sin, qk_norm)
            x = x + F.linear(seen, o)
            hidden = F.linear(F.rms_norm(x, (spec.hidden,), ffn_norm, eps), gate_up)
            gate, up = hidden.chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        x = F.rms_norm(x[wanted], (spec.hidden,), self.final_norm, eps)
        return F.linear(x, self.embedding)

    def _attend(
        self, heads: Tensor, inputs: Inputs, cos: Tensor, sin: Tensor, qk_norm: Tensor
    ) -> Tensor:
        """Run attention over the padded batch, [n, 3 * hidden] -> [n, hidden]."""
        spec = self.spec
        batch, _, length, _ = inputs.allowed.shape
        qk, v = heads[:, : 2 * spec.hidden], heads[:, 2 * spec.hidden :]
        qk = qk.view(-1, 2, spec.heads, spec.head_dim)
        qk = F.rms_norm(qk, (spec.head_dim,), eps=spec.norm_eps) * qk_norm[:, None]
        a, b = qk.flatten(1, 2).chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(1)
        flat = torch.cat([turned, v], dim=-1)
        padded = flat.new_zeros(batch * length, 3 * spec.hidden).index_copy(0, inputs.rows, flat)
        q, k, v = padded.view(batch, length, 3, spec.heads, spec.head_dim).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=inputs.allowed)
        return seen.transpose(1, 2).reshape(batch * length, spec.hidden)[inputs.rows]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by their names in a checkpoint."""
        parts: dict[str, Tensor] = {}
        for i in range(self.spec.layers):
            name = layer_prefix(i)
            q, k, v = self.qkv[i].chunk(3)
            gate, up = self.gate_up[i].chunk(2)
            parts |= {
                f"{name}self_attn.q_proj.weight": q,
                f"{name}self_attn.k_proj.weight": k,
                f"{name}self_attn.v_proj.weight": v,
                f"{name}self_attn.o_proj.weight": self.o[i],
                f"{name}mlp.gate_proj.weight": gate,
                f"{name}mlp.up_proj.weight": up,
                f"{name}mlp.down_proj.weight": self.down[i],
                f"{name}input_layernorm.weight": self.attn_norm[i],
                f"{name}post_attention_layernorm.weight": self.ffn_norm[i],
                f"{name}self_attn.q_norm.weight": self.qk_norm[i, 0],
                f"{name}self_attn.k_norm.weight": self.qk_norm[i, 1],
            }
        parts |= {EMBEDDING: self.embedding, FINAL_NORM: self.final_norm}
        return {name: part.detach() for name, part in parts.items()}
