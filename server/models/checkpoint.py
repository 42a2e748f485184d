"""What a loader hands over: a description, and its tensors by their Hugging Face names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from plait.server.models.catalog import BadModel
from plait.server.models.spec import ModelSpec

GROUP = 32  # values that share a scale, along a row

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Groups:
    """A quantised matrix as the file stores it: value = q * scale + minimum, per group of 32."""

    q: Tensor  # [n, k] uint8 0..15 (int4) or int8 -128..127 (int8)
    scale: Tensor  # [n, k / 32] float32
    minimum: Tensor | None  # [n, k / 32] float32; None: 0
    mode: Literal["int4", "int8"]

    def dense(self) -> Tensor:
        """Return the values, [n, k] float32."""
        grouped = self.q.reshape(*self.scale.shape, GROUP) * self.scale[:, :, None]
        if self.minimum is not None:
            grouped += self.minimum[:, :, None]
        return grouped.reshape(self.q.shape)


@dataclass(frozen=True, slots=True)
class Dense:
    """A tensor of plain numbers."""

    values: Tensor
    keep: Literal["bf16", "int8", "int4"]  # the mode that keeps its precision


class Checkpoint(Protocol):
    """A model file that has been opened."""

    spec: ModelSpec

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""

    def read(self, name: str) -> Dense | Groups:
        """Return one tensor in the precision of the file."""


def layer_prefix(layer: int) -> str:
    """Return what the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def parameter_names(spec: ModelSpec) -> Iterator[str]:
    """Yield the name of every tensor that a model of this description is made of."""
    yield EMBEDDING
    yield FINAL_NORM
    if not spec.tied_embeddings:
        yield LM_HEAD
    for layer in range(spec.layers):
        for part in _layer_parts(spec):
            yield layer_prefix(layer) + part


def _layer_parts(spec: ModelSpec) -> Iterator[str]:
    yield from ("input_layernorm.weight", "post_attention_layernorm.weight")
    if spec.qk_norm:
        yield from ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
    biased = {
        "self_attn.q_proj": spec.qkv_bias,
        "self_attn.k_proj": spec.qkv_bias,
        "self_attn.v_proj": spec.qkv_bias,
        "self_attn.o_proj": spec.o_bias,
        "mlp.gate_proj": spec.mlp_bias,
        "mlp.up_proj": spec.mlp_bias,
        "mlp.down_proj": spec.mlp_bias,
    }
    for linear, bias in biased.items():
        yield f"{linear}.weight"
        if bias:
            yield f"{linear}.bias"


def check_complete(checkpoint: Checkpoint) -> None:
    """Refuse a file whose tensors are not exactly those of its description.

    Raises:
        BadModel: naming what is missing, or what the forward pass would leave unused.
    """
    want, have = set(parameter_names(checkpoint.spec)), set(checkpoint.names())
    if missing := sorted(want - have):
        raise BadModel(f"the file lacks {_some(missing)}")
    unused = have - want
    if checkpoint.spec.tied_embeddings:
        unused.discard(LM_HEAD)  # some files repeat the embedding
    # Old files carry the rotary frequencies, which follow from the description.
    unused = {name for name in unused if not name.endswith("rotary_emb.inv_freq")}
    if unused:
        raise BadModel(
            f"the file holds {_some(sorted(unused))}, unknown to {checkpoint.spec.family}"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
