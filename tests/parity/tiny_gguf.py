"""Writes tiny GGUF files as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from plait.server.models.spec import ModelSpec

Type = gguf.GGMLQuantizationType
PERMUTED = ("llama", "smollm3")


def write_gguf(
    path: Path, spec: ModelSpec, weights: Mapping[str, Tensor], kind: Type, **keys: Any
) -> None:
    """Write weights (Hugging Face names, fp32) with matrices quantised to `kind`.

    keys: further metadata of the architecture, dots written as double underscores; a Tensor
    becomes a tensor of that name.
    """
    writer = gguf.GGUFWriter(path, spec.family)
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope.theta)
    for key, value in keys.items():
        _add(writer, key.replace("__", "."), value)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, spec.layers)
    for name, values in weights.items():
        stored = _permuted(name, values, spec).numpy()
        raw = Type.F32 if values.ndim == 1 else kind
        writer.add_tensor(
            table.get_name(name, (".weight", ".bias")) or name,
            gguf.quants.quantize(stored, raw),
            raw_dtype=raw,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def round_trip(weights: Mapping[str, Tensor], kind: Type) -> dict[str, Tensor]:
    """Return the values that a file of this type holds: quantised, then dequantised."""
    return {
        name: values if values.ndim == 1 else _through(values, kind)
        for name, values in weights.items()
    }


def _through(values: Tensor, kind: Type) -> Tensor:
    stored = gguf.quants.quantize(values.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind)))


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, Tensor):
        writer.add_tensor(key, value.numpy())
    elif isinstance(value, str):
        writer.add_string(f"{writer.arch}.{key}", value)
    elif isinstance(value, int):
        writer.add_uint32(f"{writer.arch}.{key}", value)
    else:
        writer.add_float32(f"{writer.arch}.{key}", value)


def _permuted(name: str, values: Tensor, spec: ModelSpec) -> Tensor:
    heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name.split(".")[-2])
    if spec.family not in PERMUTED or heads is None:
        return values
    halves = values.reshape(heads, 2, spec.head_dim // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape).contiguous()
