"""The decoder layer of a draft head, over rows of many sequences at once.

What a row sees: the true rows of its sequence, of which keys and values are kept, and the rows of
the draft that lead to it. Both are dense tensors with a mask, since they are small: a window of
true rows, and a handful of steps.

Law: the trained layer's forward pass (a test compares it with the trainer's), up to the rounding of
the weights' mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from plait.kernels.elementwise import rms_norm, rope
from plait.kernels.linear import Mode, Weight, from_dense, linear

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "final")
PREFIX = "layer."


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What tensors don't say of a layer."""

    kv_heads: int
    head_dim: int
    norm_eps: float
    theta: float  # of the rotary positions
    max_positions: int
    window: int  # true rows that a row sees


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys, rotated, and values of rows: [..., kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


class HeadLayer:
    """A decoder layer, ready to run."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shape: LayerShape, mode: Mode, *, naive: bool = False
    ) -> None:
        """Args: tensors by the names of MATRICES and NORMS, PREFIX before them, fp32."""
        self.shape = shape
        self._naive = naive
        self._weights: dict[str, Weight] = {
            name: from_dense(tensors[PREFIX + name].float(), mode, naive=naive) for name in MATRICES
        }
        self._norms = {name: tensors[PREFIX + name].float() for name in NORMS}
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        places = torch.arange(shape.max_positions, dtype=torch.float64)
        angles = torch.outer(places, shape.theta**-exponents)
        device = self._norms["final"].device
        self._cos, self._sin = (x.float().to(device) for x in (angles.cos(), angles.sin()))

    def project(self, x: Tensor, positions: Tensor) -> KeysValues:
        """Return keys and values of inputs x [rows, hidden]."""
        h = self._normed(x, "input_layernorm")
        k, v = (
            self._linear(h, name).view(len(x), -1, self.shape.head_dim) for name in MATRICES[1:3]
        )
        return KeysValues(self._turned(k, positions), v)

    def forward(
        self, x: Tensor, positions: Tensor, true: KeysValues, hides: Tensor, own: KeysValues
    ) -> Tensor:
        """Return states [sequences * rows, hidden]: of the same kind as the model's own.

        Args:
            x: [sequences * rows, hidden].
            positions: [sequences * rows].
            true: [sequences, n, kv_heads, head_dim] of the true rows.
            hides: [sequences, n] bool: what is no true row of the sequence, or beyond the window.
            own: [sequences, rows, steps, kv_heads, head_dim] of the rows of the draft, each row's
                own the last; steps may be 0.
        """
        shape, sequences = self.shape, len(true.keys)
        q = self._linear(self._normed(x, "input_layernorm"), "q_proj")
        q = self._turned(q.view(len(x), -1, shape.head_dim), positions)
        q = q.view(sequences, -1, shape.kv_heads, q.shape[1] // shape.kv_heads, shape.head_dim)
        seen = torch.einsum("srhgd,snhd->srhgn", q, true.keys)
        seen = seen.masked_fill(hides[:, None, None, None], -torch.inf)
        behind = torch.einsum("srhgd,srjhd->srhgj", q, own.keys)
        shares = (torch.cat([seen, behind], dim=-1) * shape.head_dim**-0.5).softmax(dim=-1)
        count = true.keys.shape[1]
        read = torch.einsum("srhgn,snhd->srhgd", shares[..., :count], true.values)
        read = read + torch.einsum("srhgj,srjhd->srhgd", shares[..., count:], own.values)
        x = x + self._linear(read.reshape(len(x), -1), "o_proj")
        h = self._normed(x, "post_attention_layernorm")
        wide = silu(self._linear(h, "gate_proj")) * self._linear(h, "up_proj")
        return self._normed(x + self._linear(wide, "down_proj"), "final")

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self._norms[name], self.shape.norm_eps, naive=self._naive)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._weights[name], naive=self._naive)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        last = self.shape.max_positions - 1  # a place beyond the text is never drawn
        return rope(x, self._cos, self._sin, positions.clamp(max=last))
