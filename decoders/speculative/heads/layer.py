"""The decoder layer of a draft head, for the rows of many sequences at once.

A row attends to the verified rows of its sequence, whose keys and values are cached, and to its
ancestors in the draft. Both are dense masked tensors because they are small: a window of verified
rows, and a few steps.

Law: the forward pass of the trained layer (a test compares it with the trainer's), up to the
rounding of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from plait.kernels.backend import KernelBackend
from plait.kernels.elementwise.reference import rope
from plait.kernels.linear import Mode, Weight, dequantize, from_dense, from_quantized

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "final")
PREFIX = "layer."


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The hyperparameters of a layer."""

    kv_heads: int
    head_dim: int
    norm_eps: float
    theta: float  # of the rotary embedding
    max_positions: int
    window: int  # verified rows that a row attends to


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Rotated keys and values of rows: [..., kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


def read_weight(tensors: Mapping[str, Tensor], name: str, mode: Mode) -> Weight:
    """Return a matrix of a head's file in a mode: of any float type, or int8 with NAME.scale."""
    scale = tensors.get(f"{name}.scale")
    if scale is None:
        return from_dense(tensors[name].float(), mode)
    stored = from_quantized(tensors[name], scale, None)
    return stored if mode == "int8" else from_dense(dequantize(stored), mode)


class HeadLayer:
    """A decoder layer, ready to run."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shape: LayerShape, mode: Mode, backend: KernelBackend
    ) -> None:
        """Args: tensors are those of the file, by the names of MATRICES and NORMS behind PREFIX."""
        self.shape = shape
        self._backend = backend
        self._weights: dict[str, Weight] = {
            name: backend.pack(read_weight(tensors, PREFIX + name, mode)) for name in MATRICES
        }
        self._norms = {name: tensors[PREFIX + name].float() for name in NORMS}
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        positions = torch.arange(shape.max_positions, dtype=torch.float64)
        angles = torch.outer(positions, shape.theta**-exponents)
        device = self._norms["final"].device
        self._cos, self._sin = (x.float().to(device) for x in (angles.cos(), angles.sin()))

    def project(self, x: Tensor, positions: Tensor) -> KeysValues:
        """Return keys and values of inputs x [rows, hidden]."""
        h = self._normed(x, "input_layernorm")
        k, v = (
            self._linear(h, name).view(len(x), -1, self.shape.head_dim) for name in MATRICES[1:3]
        )
        return KeysValues(self._rotated(k, positions), v)

    def forward(
        self, x: Tensor, positions: Tensor, verified: KeysValues, mask: Tensor, draft: KeysValues
    ) -> Tensor:
        """Return hidden states [sequences * rows, hidden], like the model's own.

        Args:
            x: [sequences * rows, hidden].
            positions: [sequences * rows].
            verified: [sequences, n, kv_heads, head_dim] of the verified rows.
            mask: [sequences, n] bool, True where `verified` is padding.
            draft: [sequences, rows, steps, kv_heads, head_dim] of each row's ancestors in the draft
                and, last, of the row itself; steps may be 0.
        """
        shape, sequences = self.shape, len(verified.keys)
        q = self._linear(self._normed(x, "input_layernorm"), "q_proj")
        q = self._rotated(q.view(len(x), -1, shape.head_dim), positions)
        q = q.view(sequences, -1, shape.kv_heads, q.shape[1] // shape.kv_heads, shape.head_dim)
        seen = torch.einsum("srhgd,snhd->srhgn", q, verified.keys)
        seen = seen.masked_fill(mask[:, None, None, None], -torch.inf)
        behind = torch.einsum("srhgd,srjhd->srhgj", q, draft.keys)
        shares = (torch.cat([seen, behind], dim=-1) * shape.head_dim**-0.5).softmax(dim=-1)
        count = verified.keys.shape[1]
        read = torch.einsum("srhgn,snhd->srhgd", shares[..., :count], verified.values)
        read = read + torch.einsum("srhgj,srjhd->srhgd", shares[..., count:], draft.values)
        x = x + self._linear(read.reshape(len(x), -1), "o_proj")
        h = self._normed(x, "post_attention_layernorm")
        wide = silu(self._linear(h, "gate_proj")) * self._linear(h, "up_proj")
        return self._normed(x + self._linear(wide, "down_proj"), "final")

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return self._backend.rms_norm(x, self._norms[name], self.shape.norm_eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self._backend.linear(x, self._weights[name])

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        last = self.shape.max_positions - 1  # tokens beyond it are never sampled
        return rope(x, self._cos, self._sin, positions.clamp(max=last))
