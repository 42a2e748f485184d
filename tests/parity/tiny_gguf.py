"""Writes tiny GGUF files as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.server.models.spec import ModelSpec

Type = gguf.GGMLQuantizationType
Numbers = npt.NDArray[Any]
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
            quantise(stored, raw),
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
    stored = quantise(values.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind)))


def quantise(values: Numbers, kind: Type) -> Numbers:
    """Return the bytes of a tensor; `gguf` quantises to all types that are used here but Q4_K."""
    if kind is not Type.Q4_K:
        return gguf.quants.quantize(values, kind)
    groups = values.reshape(values.shape[0], -1, 8, 32)
    floor = -groups.min(-1).clip(max=0)
    step, scale = _six_bits((groups.max(-1) + floor) / 15)
    floor_step, minimum = _six_bits(floor)
    width = np.maximum(step * scale, 1e-9)[..., None]
    q = np.rint((groups + (floor_step * minimum)[..., None]) / width).clip(0, 15).astype(np.uint8)
    parts = (
        step.astype(np.float16).view(np.uint8),
        floor_step.astype(np.float16).view(np.uint8),
        scale[..., :4] | scale[..., 4:] >> 4 << 6,
        minimum[..., :4] | minimum[..., 4:] >> 4 << 6,
        scale[..., 4:] & 15 | minimum[..., 4:] << 4,
        (q[..., 0::2, :] | q[..., 1::2, :] << 4).reshape(*q.shape[:2], 128),
    )
    return np.concatenate(parts, axis=-1).reshape(values.shape[0], -1)


def _six_bits(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return a step and 0..63 times it for every 8 values."""
    step = (values.max(-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    return step, np.rint(values / np.maximum(step, 1e-9)).clip(0, 63).astype(np.uint8)


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
