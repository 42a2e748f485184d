"""GGUF files: their metadata as a ModelSpec, their tensors by Hugging Face names.

The converter of llama.cpp reorders the query and key rows of Llama-like models, so that a rotated
pair stands in neighbouring rows; here the halves are put back. Whole rows move, so quantised blocks
stay exact. Torch is loaded with the first tensor that is read. Source: the GGUF specification and
its key names in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, ReaderTensor, get_tensor_name_map, quants

from plait.server.models.catalog import OTHERS, BadModel, naming
from plait.server.models.checkpoint import DenseTensor, QuantizedTensor, parameter_shapes
from plait.server.models.gguf_header import GgufFile, read_gguf
from plait.server.models.spec import MAX_LAYERS, ModelSpec, RopeSpec, yarn_attention_factor

# Supported architectures: does the converter reorder their query and key rows?
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False, "smollm3": True}
_ROPE_FACTORS = "rope_freqs.weight"
_NOPE_INTERVAL = 4  # SmolLM3; the format has no key for it
_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.attn_factor",
    }
)


class GgufCheckpoint:
    """An open GGUF file."""

    diffusion = None  # none of the supported architectures fills holes

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        with naming(path):
            self.spec = spec_from_metadata(file)
        arch = file.metadata["general.architecture"]
        names = _hf_names(self.spec)
        self._tensors = {names.get(name, name): tensor for name, tensor in file.tensors.items()}
        self._tensors.pop(_ROPE_FACTORS, None)  # part of the description
        self._reordered = ARCHITECTURES[arch]

    def names(self) -> Collection[str]:
        """Return the Hugging Face names of all tensors."""
        return self._tensors.keys()

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raise BadModel if its type can't be read."""
        tensor = self._tensors[name]
        try:
            quants.dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise BadModel(f"{name} is of GGUF type {kind}, which is not supported") from error
        return tuple(int(size) for size in reversed(tensor.shape))

    def read(self, name: str) -> DenseTensor | QuantizedTensor:
        """Return one tensor in the precision of the file, rows in Hugging Face order."""
        from plait.server.models.gguf_blocks import unpack  # noqa: PLC0415, it loads torch

        tensor = self._tensors[name]
        rows: npt.NDArray[np.generic] = tensor.data
        heads = {"q_proj": self.spec.heads, "k_proj": self.spec.kv_heads}.get(name.split(".")[-2])
        if self._reordered and heads:
            rows = rows[_halves_first(heads, self.spec.head_dim)]
        return unpack(rows, tensor.tensor_type)


def _halves_first(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Return where each row lies in the file, which stores row i of both halves side by side."""
    return np.arange(heads * head_dim).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _hf_names(spec: ModelSpec) -> dict[str, str]:
    """Return the Hugging Face name of each GGUF tensor that the description calls for."""
    # Qwen3's table is the union of the supported architectures'.
    table = get_tensor_name_map(MODEL_ARCH.QWEN3, spec.layers)
    suffixes = (".weight", ".bias")
    return {table.get_name(name, suffixes) or name: name for name in parameter_shapes(spec)}


def spec_from_metadata(file: GgufFile) -> ModelSpec:
    """Return the description of the model in a GGUF file.

    Raises:
        BadModel: the architecture, a key or a value is not one that plait can compute.
    """
    arch = file.metadata.get("general.architecture")
    if (kind := file.metadata.get("general.type", "model")) != "model":
        raise BadModel(f"general.type is {kind!r}: this file is no model of its own")
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BadModel(
            f"architecture {arch!r} is not supported; supported are {known}. {OTHERS['gguf']}"
        )
    if file.metadata.get("split.count", 1) > 1:
        raise BadModel("split files are not supported; merge them with llama-gguf-split")
    keys = _Keys(arch, file.metadata)
    heads = keys.whole("attention.head_count")
    hidden, layers = keys.whole("embedding_length"), keys.whole("block_count", most=MAX_LAYERS)
    head_dim = keys.whole("attention.key_length", hidden // heads)
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise BadModel("values and keys of different sizes are not supported")
    rope = _rope(keys, head_dim, file.tensors)
    if ARCHITECTURES[arch] and rope.dim != head_dim:
        raise BadModel(f"{arch} with rotary positions in a part of the head is not supported")
    interval = _NOPE_INTERVAL if arch == "smollm3" else layers + 1
    return ModelSpec(
        family=arch,
        vocab=int(_shape(file, "token_embd.weight")[-1]),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=keys.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=keys.whole("feed_forward_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        max_positions=rope.max_positions(keys.whole("context_length")),
        rope=rope,
        windows=(keys.whole("attention.sliding_window", 0, least=0),) * layers,
        rotary=tuple((layer + 1) % interval != 0 for layer in range(layers)),
        qk_norm=arch == "qwen3",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        tied_embeddings="output.weight" not in file.tensors,
    )


class _Keys:
    """The metadata of one architecture; keys that are on but unknown are refused at once."""

    def __init__(self, arch: str, metadata: Mapping[str, Any]) -> None:
        self._prefix = f"{arch}."
        self._metadata = metadata
        for key, value in metadata.items():
            own = key.removeprefix(self._prefix)
            if own != key and value and own not in _KNOWN_KEYS:
                told = f"key {key} = {value!r} is not understood"
                raise BadModel(f"{told}, and may change what the model computes. {OTHERS['gguf']}")

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(self._prefix + key, default)

    def whole(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1
    ) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or value < least:
            raise BadModel(f"key {self._prefix}{key} must be a whole number, not {value!r}")
        if value > most:
            raise BadModel(f"key {self._prefix}{key} is {value}; more than {most} is not supported")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float):
            raise BadModel(f"key {self._prefix}{key} must be a number, not {value!r}")
        return float(value)


def _rope(keys: _Keys, head_dim: int, tensors: Mapping[str, ReaderTensor]) -> RopeSpec:
    theta = keys.number("rope.freq_base", 1e4)
    dim = keys.whole("rope.dimension_count", head_dim)
    kind = keys.get("rope.scaling.type", "none")
    if _ROPE_FACTORS in tensors:
        if kind != "none":
            raise BadModel(f"rope scaling {kind!r} together with {_ROPE_FACTORS} is not supported")
        factors = tuple(float(factor) for factor in tensors[_ROPE_FACTORS].data)
        return RopeSpec(theta, dim, "factors", factors=factors)
    if kind == "none":
        return RopeSpec(theta, dim)
    factor = keys.number("rope.scaling.factor")
    if kind == "linear":
        return RopeSpec(theta, dim, "linear", factor=factor)
    if kind == "yarn":
        return RopeSpec(
            theta,
            dim,
            "yarn",
            factor=factor,
            original_positions=keys.whole("rope.scaling.original_context_length"),
            beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=_attention_factor(keys, factor),
        )
    raise BadModel(f"rope scaling {kind!r} is not supported; supported are linear, yarn")


def _attention_factor(keys: _Keys, factor: float) -> float:
    """Return what multiplies cosines and sines.

    The converter writes the original's attention_factor, the whole of it, as yarn_attn_factor;
    llama.cpp's own attn_factor multiplies what follows from the stretch.
    """
    if keys.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise BadModel("rope.scaling.yarn_ext_factor other than 1 is not supported")
    whole = keys.number("rope.scaling.yarn_attn_factor", yarn_attention_factor(factor))
    return whole * keys.number("rope.scaling.attn_factor", 1.0)


def _shape(file: GgufFile, name: str) -> npt.NDArray[np.uint32]:
    if name not in file.tensors:
        raise BadModel(f"the file lacks {name}")
    return file.tensors[name].shape
