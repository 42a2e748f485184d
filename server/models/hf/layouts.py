"""Tensor names and fused tensors of the families that don't use Llama's names.

Source: the weight files of the released models, September 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plait.server.models.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from plait.server.models.spec import ModelSpec

_LLADA_LAYER = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)")
_LLADA_PARTS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_LLADA2_FUSED = "query_key_value"  # the rows of q, then of k, then of v
_LLADA2_ATTENTION = re.compile(r"(model\.layers\.\d+\.)attention\.(\w+)\.(weight|bias)")
_LLADA2_PARTS: Mapping[str, str] = {
    "query_layernorm": "q_norm",
    "key_layernorm": "k_norm",
    "dense": "o_proj",
}
_LLADA_OUTER: Mapping[str, str] = {
    "model.transformer.wte.weight": EMBEDDING,
    "model.transformer.ln_f.weight": FINAL_NORM,
    "model.transformer.ff_out.weight": LM_HEAD,
}


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A tensor under its Llama name: all rows of a stored tensor, or a slice of them."""

    name: str
    start: int = 0
    stop: int | None = None


def tensor_slices(stored: str, spec: ModelSpec) -> tuple[TensorSlice, ...]:
    """Return what a tensor of the file holds; an unknown name is handed on as it is."""
    if spec.family == "llada":
        return (TensorSlice(_llada(stored)),)
    if spec.family == "llada2_moe":
        return _llada2(stored, spec)
    return (TensorSlice(stored),)


def _llada(stored: str) -> str:
    match = _LLADA_LAYER.fullmatch(stored)
    if match is None or match[2] not in _LLADA_PARTS:
        return _LLADA_OUTER.get(stored, stored)
    return f"{layer_prefix(int(match[1]))}{_LLADA_PARTS[match[2]]}.{match[3]}"


def _llada2(stored: str, spec: ModelSpec) -> tuple[TensorSlice, ...]:
    match = _LLADA2_ATTENTION.fullmatch(stored)
    if match is None:
        return (TensorSlice(EMBEDDING if stored == "model.word_embeddings.weight" else stored),)
    prefix, suffix = f"{match[1]}self_attn.", f".{match[3]}"
    if match[2] != _LLADA2_FUSED:
        return (TensorSlice(prefix + _LLADA2_PARTS.get(match[2], match[2]) + suffix),)
    k = spec.heads * spec.head_dim
    v = k + spec.kv_heads * spec.head_dim
    return (
        TensorSlice(f"{prefix}q_proj{suffix}", 0, k),
        TensorSlice(f"{prefix}k_proj{suffix}", k, v),
        TensorSlice(f"{prefix}v_proj{suffix}", v),
    )
