"""What a loader hands over: a description, and its tensors by their Hugging Face names.

No torch: the front end opens a model, too, to refuse what can't be served before a worker starts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.models.catalog import BadModel
from plait.server.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32  # values that share a scale, along a row

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
# Within a layer:
ROUTER = "mlp.gate"
EXPERT_BIAS = "mlp.gate.expert_bias"
SHARED_EXPERT = "mlp.shared_experts"


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantised matrix as the file stores it: value = q * scale + minimum, per group of 32."""

    q: Tensor  # [n, k] uint8 0..15 (int4) or int8 -128..127 (int8)
    scale: Tensor  # [n, k / 32] float32
    minimum: Tensor | None  # [n, k / 32] float32; None: 0
    mode: Literal["int4", "int8"]

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, k]."""
        return tuple(self.q.shape)

    def dense(self) -> Tensor:
        """Return the values, [n, k] float32."""
        grouped = self.q.reshape(*self.scale.shape, GROUP) * self.scale[:, :, None]
        if self.minimum is not None:
            grouped += self.minimum[:, :, None]
        return grouped.reshape(self.q.shape)


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """A tensor of plain numbers."""

    values: Tensor
    keep: Literal["bf16", "int8", "int4"]  # the mode that keeps its precision

    @property
    def shape(self) -> tuple[int, ...]:
        """Any number of axes."""
        return tuple(self.values.shape)

    def dense(self) -> Tensor:
        """Return the values in their own type."""
        return self.values


class Checkpoint(Protocol):
    """A model file that has been opened."""

    @property
    def spec(self) -> ModelSpec:
        """Everything the forward pass depends on."""

    @property
    def diffusion(self) -> DiffusionSpec | None:
        """How the model fills holes; None: it doesn't."""

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it.

        Raises:
            BadModel: it is of a type that is not supported.
        """

    def read(self, name: str) -> DenseTensor | QuantizedTensor:
        """Return one tensor in the precision of the file."""


def layer_prefix(layer: int) -> str:
    """Return what the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def expert(index: int) -> str:
    """Return what the names of an expert's tensors begin with, within its layer."""
    return f"mlp.experts.{index}"


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a model of this description is made of."""
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (spec.vocab, spec.hidden),
        FINAL_NORM: (spec.hidden,),
    }
    if not spec.tied_embeddings:
        shapes[LM_HEAD] = (spec.vocab, spec.hidden)
    for layer in range(spec.layers):
        parts = _attention_shapes(spec) | _feed_forward_shapes(spec, layer)
        shapes |= {layer_prefix(layer) + part: shape for part, shape in parts.items()}
    return shapes


def _attention_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linears = {
        "self_attn.q_proj": (q, spec.hidden, spec.qkv_bias),
        "self_attn.k_proj": (kv, spec.hidden, spec.qkv_bias),
        "self_attn.v_proj": (kv, spec.hidden, spec.qkv_bias),
        "self_attn.o_proj": (spec.hidden, q, spec.o_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (spec.hidden,),
        "post_attention_layernorm.weight": (spec.hidden,),
    }
    for name, (n, k, bias) in linears.items():
        shapes |= _linear_shapes(name, n, k, bias)
    if spec.qk_norm:
        shapes["self_attn.q_norm.weight"] = (spec.head_dim,)
        shapes["self_attn.k_norm.weight"] = (spec.head_dim,)
    return shapes


def _feed_forward_shapes(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    experts = spec.experts_of(layer)
    if experts is None:
        return _gated_shapes("mlp", spec.ffn, spec.hidden, spec.mlp_bias)
    shapes = _linear_shapes(ROUTER, experts.count, spec.hidden, False)
    if experts.bias:
        shapes[EXPERT_BIAS] = (experts.count,)
    for index in range(experts.count):
        shapes |= _gated_shapes(expert(index), experts.ffn, spec.hidden, False)
    return shapes | _gated_shapes(SHARED_EXPERT, experts.shared_ffn, spec.hidden, False)


def _gated_shapes(name: str, ffn: int, hidden: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {
        **_linear_shapes(f"{name}.gate_proj", ffn, hidden, bias),
        **_linear_shapes(f"{name}.up_proj", ffn, hidden, bias),
        **_linear_shapes(f"{name}.down_proj", hidden, ffn, bias),
    }


def _linear_shapes(name: str, n: int, k: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, k)}
    return {**shapes, f"{name}.bias": (n,)} if bias else shapes


def check_complete(checkpoint: Checkpoint) -> None:
    """Refuse a file whose tensors are not exactly those of its description.

    Raises:
        BadModel: naming what is missing, or what the forward pass would leave unused.
    """
    want, have = set(parameter_shapes(checkpoint.spec)), set(checkpoint.names())
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


def check_shapes(checkpoint: Checkpoint) -> None:
    """Refuse tensors that are not of the description's shapes, without reading them.

    Raises:
        BadModel: naming the first.
    """
    for name, want in parameter_shapes(checkpoint.spec).items():
        if (have := checkpoint.stored_shape(name)) != want:
            raise BadModel(f"{name} is {have}, not {want}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
