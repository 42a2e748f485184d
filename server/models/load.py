"""Loads a model: opens its files, packs its weights for the kernels, and names the result.

Weight modes. fp32, bf16: every linear layer in that format. int8, int4, int4fixed: quantised in
groups of 32; the head never goes below int8, since its rounding errors go straight into the logits,
and a router stays fp32, since rounding it sends rows to other experts. auto keeps the precision of
the file: Q4_0, Q4_1 and Q4_K as int4, Q5_0 and Q8_0 as int8 (all value for value), other quantised
types as int8, plain numbers as bf16. int4fixed rounds the scales of 4-bit weights (ADR 0012).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.kernels.backend import KernelBackend
from plait.kernels.decoder_stack import LayerWeights
from plait.kernels.dispatch import choose_backend
from plait.kernels.linear import Mode, Weight, as_fixed, from_dense, from_quantized
from plait.kernels.moe import ExpertRouting, ExpertWeights
from plait.server.models.catalog import BadModel, ModelFiles, naming
from plait.server.models.checkpoint import (
    EMBEDDING,
    EXPERT_BIAS,
    FINAL_NORM,
    LM_HEAD,
    ROUTER,
    SHARED_EXPERT,
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    check_complete,
    expert,
    layer_prefix,
    parameter_shapes,
)
from plait.server.models.fingerprint import fingerprint
from plait.server.models.gguf import GgufCheckpoint
from plait.server.models.hf.folder import HfCheckpoint
from plait.server.models.rope import tables
from plait.server.models.spec import MoeSpec
from plait.server.models.transformer import ModelWeights, TiedEmbedding, Transformer
from plait.server.settings import WeightMode


def load_model(
    files: ModelFiles,
    *,
    weights: WeightMode = "auto",
    device: str = "cpu",
    threads: int = 0,
    reference: bool = False,
    tell: Callable[[str], None] = lambda stage: None,
) -> Transformer:
    """Load a model into memory.

    Args:
        weights: the mode of the linear layers; see the module.
        threads: of the whole process's torch and kernels; 0 leaves them as they are.
        reference: use the reference kernels instead of the compiled ones.
        tell: is called with the progress in words, layer by layer.
    Raises:
        BadModel: the files are damaged, incomplete or describe what plait cannot compute; or the
            device is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    backend = choose_backend(_device(device), reference=reference)
    with naming(files.path):
        checkpoint: Checkpoint = (
            GgufCheckpoint(files.path) if files.kind == "gguf" else HfCheckpoint(files.path)
        )
        check_complete(checkpoint)
        shapes = parameter_shapes(checkpoint.spec)
        parts = _WeightLoader(checkpoint, shapes, weights, backend).load(tell)
    mode = weights if weights != "auto" else _main_mode(parts)
    return Transformer(
        checkpoint.spec,
        parts,
        mode=mode,
        fingerprint=fingerprint(files, mode),
        diffusion=checkpoint.diffusion,
        backend=backend,
    )


def _device(name: str) -> torch.device:
    """Return a device that is there."""
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BadModel(f"device {name}: torch finds no GPU that it can use; give --device cpu")
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise BadModel(f"device {name}: there are {count} GPUs, the first is cuda:0")
    return device


def _main_mode(parts: ModelWeights) -> Mode:
    """Return the mode of most values in the layers."""
    sizes: Counter[Mode] = Counter()
    for layer in parts.layers:
        for weight in (layer.q, layer.o, layer.gate, layer.up, layer.down):
            sizes[weight.mode] += weight.n * weight.k
    return sizes.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class _WeightLoader:
    """Turns the tensors of a checkpoint into the weights that a backend reads."""

    checkpoint: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]  # that the description calls for, by name
    mode: WeightMode
    backend: KernelBackend

    def load(self, tell: Callable[[str], None]) -> ModelWeights:
        spec = self.checkpoint.spec
        layers = []
        for index in range(spec.layers):
            tell(f"layer {index + 1} of {spec.layers}")
            layers.append(self._layer(index))
        tell("embedding and head")
        cos, sin = tables(spec.rope, spec.max_positions)
        embedding, head = self._ends()
        return ModelWeights(
            embedding=embedding,
            layers=layers,
            final_norm=self._vector(FINAL_NORM),
            lm_head=head,
            cos=cos.to(self.backend.device),
            sin=sin.to(self.backend.device),
        )

    def _layer(self, index: int) -> LayerWeights:
        spec = self.checkpoint.spec
        experts = spec.experts_of(index)
        attention = f"{layer_prefix(index)}self_attn."
        mlp = f"{layer_prefix(index)}{SHARED_EXPERT if experts else 'mlp'}."
        return LayerWeights(
            attn_norm=self._vector(f"{layer_prefix(index)}input_layernorm.weight"),
            q=self._linear(f"{attention}q_proj.weight"),
            k=self._linear(f"{attention}k_proj.weight"),
            v=self._linear(f"{attention}v_proj.weight"),
            o=self._linear(f"{attention}o_proj.weight"),
            ffn_norm=self._vector(f"{layer_prefix(index)}post_attention_layernorm.weight"),
            gate=self._linear(f"{mlp}gate_proj.weight"),
            up=self._linear(f"{mlp}up_proj.weight"),
            down=self._linear(f"{mlp}down_proj.weight"),
            q_norm=self._optional(f"{attention}q_norm.weight"),
            k_norm=self._optional(f"{attention}k_norm.weight"),
            q_bias=self._optional(f"{attention}q_proj.bias"),
            k_bias=self._optional(f"{attention}k_proj.bias"),
            v_bias=self._optional(f"{attention}v_proj.bias"),
            o_bias=self._optional(f"{attention}o_proj.bias"),
            gate_bias=self._optional(f"{mlp}gate_proj.bias"),
            up_bias=self._optional(f"{mlp}up_proj.bias"),
            down_bias=self._optional(f"{mlp}down_proj.bias"),
            window=spec.windows[index],
            rotary=spec.rotary[index],
            experts=self._experts(index, experts) if experts else None,
        )

    def _experts(self, layer: int, experts: MoeSpec) -> ExpertWeights:
        prefix = layer_prefix(layer)
        names = [f"{prefix}{expert(index)}." for index in range(experts.count)]
        return ExpertWeights(
            routing=ExpertRouting(
                chosen=experts.chosen,
                groups=experts.groups,
                kept_groups=experts.kept_groups,
                normalised=experts.normalised,
                scale=experts.scale,
            ),
            router=self._linear(f"{prefix}{ROUTER}.weight", "fp32"),
            bias=self._optional(f"{prefix}{EXPERT_BIAS}"),
            gate=[self._linear(f"{name}gate_proj.weight") for name in names],
            up=[self._linear(f"{name}up_proj.weight") for name in names],
            down=[self._linear(f"{name}down_proj.weight") for name in names],
        )

    def _vector(self, name: str) -> Tensor:
        return self._read(name).dense().to(self.backend.device).float()

    def _optional(self, name: str) -> Tensor | None:
        return self._vector(name) if name in self.shapes else None

    def _ends(self) -> tuple[Tensor | TiedEmbedding, Weight]:
        """Return the embedding, made of the head where both hold the same, and the head."""
        tied = self.checkpoint.spec.tied_embeddings
        if tied and LM_HEAD in self.checkpoint.names():
            self._check_repeated(LM_HEAD, EMBEDDING)
        stored = self._read(EMBEDDING)
        mode: WeightMode = "int8" if self.mode in ("int4", "int4fixed") else self.mode
        head = self._packed(stored, mode) if tied else self._linear(LM_HEAD, mode)
        is_kept = isinstance(stored, QuantizedTensor) and head.mode.startswith(stored.mode)
        dtype = torch.float32 if self.mode == "fp32" else torch.bfloat16
        is_same = tied and (is_kept or head.mode in ("fp32", "bf16"))  # rounded in the same way
        if is_same and self.backend.device.type == "cpu":
            return TiedEmbedding(head, dtype, self.backend), head
        return stored.dense().to(self.backend.device, dtype), head

    def _check_repeated(self, name: str, original: str) -> None:
        copy, first = self.checkpoint.read(name).dense(), self.checkpoint.read(original).dense()
        if not torch.equal(copy, first):
            raise BadModel(
                f"{name} is not {original}, though the config says that they are tied; "
                "set tie_word_embeddings to false if the file is right"
            )

    def _linear(self, name: str, mode: WeightMode | None = None) -> Weight:
        return self._packed(self._read(name), mode or self.mode)

    def _packed(self, stored: DenseTensor | QuantizedTensor, mode: WeightMode) -> Weight:
        return self.backend.pack(self._rows(stored, mode))

    def _rows(self, stored: DenseTensor | QuantizedTensor, mode: WeightMode) -> Weight:
        if isinstance(stored, QuantizedTensor):
            if mode in ("auto", stored.mode):
                return self._groups(stored)
            if (mode, stored.mode) == ("int4fixed", "int4"):
                return as_fixed(self._groups(stored))
            stored = DenseTensor(stored.dense(), stored.mode)
        target = stored.keep if mode == "auto" else mode
        return from_dense(stored.values.to(self.backend.device), target)

    def _read(self, name: str) -> DenseTensor | QuantizedTensor:
        stored = self.checkpoint.read(name)
        if stored.shape != self.shapes[name]:
            raise BadModel(f"{name} is {stored.shape}, not {self.shapes[name]}")
        numbers = stored.values if isinstance(stored, DenseTensor) else stored.scale
        minimum = None if isinstance(stored, DenseTensor) else stored.minimum
        for part in (numbers, minimum):
            # A sum is one pass without a copy, and what is not finite stays so.
            if part is not None and not part.sum(dtype=torch.float64).isfinite():
                raise BadModel(
                    f"{name} holds numbers that are NaN or infinite: the file is damaged, or was "
                    "converted badly; download or convert it again"
                )
        return stored

    def _groups(self, stored: QuantizedTensor) -> Weight:
        minimum = None if stored.minimum is None else stored.minimum.to(self.backend.device)
        scale = stored.scale.to(self.backend.device)
        return from_quantized(stored.q.to(self.backend.device), scale, minimum)
