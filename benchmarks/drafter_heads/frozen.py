"""The frozen model twice: as it is served, for reading texts, and in plain torch, for gradients.

The plain one computes only rows that hang on a text read before: small trees of inputs, each of
which sees the text up to its anchor and its own predecessors. Its weights are the file's values; no
gradient ever reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.kernels.paged_attention import BLOCK_SIZE, CAUSAL, AttentionMetadata
from plait.server.models.catalog import ModelFiles
from plait.server.models.checkpoint import EMBEDDING, FINAL_NORM, Checkpoint, layer_prefix
from plait.server.models.gguf import GgufCheckpoint
from plait.server.models.hf.folder import HfCheckpoint
from plait.server.models.load import load_model
from plait.server.models.rope import tables
from plait.server.models.spec import ModelSpec
from plait.server.settings import WeightMode

MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the served model makes of a text."""

    hidden: Tensor  # [tokens, hidden] after the final norm
    keys: Tensor  # [layers, tokens, kv_heads, head_dim], rotated
    values: Tensor


class Reader:
    """The model as it is served, quantised weights and compiled kernels included."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        longest: int = 1024,
        weights: WeightMode = "auto",
        reference: bool = False,
    ) -> None:
        self.model = load_model(files, weights=weights, reference=reference)
        self._blocks = -(-longest // BLOCK_SIZE)
        self._kv = self.model.new_kv_cache(self._blocks)

    @torch.no_grad()
    def read(self, tokens: Sequence[int]) -> Reading:
        """Read one text. Cost: a forward pass of its tokens."""
        count = len(tokens)
        if count > self._blocks * BLOCK_SIZE:
            raise ValueError(f"{count} tokens are more than {self._blocks * BLOCK_SIZE}")
        blocks = -(-count // BLOCK_SIZE)
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
            context_lens=torch.zeros(1, dtype=torch.int32),
            block_tables=torch.arange(blocks, dtype=torch.int32)[None],
            attention_modes=torch.tensor([CAUSAL], dtype=torch.int32),
            parents=torch.full((count,), -1, dtype=torch.int32),
            positions=torch.arange(count, dtype=torch.int32),
            slot_mapping=torch.arange(count, dtype=torch.int64),
        )
        hidden = self.model.forward(torch.tensor(tokens), metadata, self._kv)
        k = self._kv.k[:, :blocks].permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :count]
        v = self._kv.v[:, :blocks].permute(0, 1, 3, 2, 4).flatten(1, 2)[:, :count]
        return Reading(hidden, k.float(), v.float())


class FrozenRows:
    """Rows of inputs of one's own behind a text, with gradients to the inputs alone."""

    def __init__(self, files: ModelFiles, dtype: torch.dtype = torch.float32) -> None:
        """Args: dtype of the layers' matrices, which products are computed in."""
        checkpoint: Checkpoint = (
            GgufCheckpoint(files.path) if files.kind == "gguf" else HfCheckpoint(files.path)
        )
        self.spec: ModelSpec = checkpoint.spec
        self.embedding = checkpoint.read(EMBEDDING).dense().float()
        self.final_norm = checkpoint.read(FINAL_NORM).dense().float()
        self._head = self.embedding.to(dtype)
        kept = dict.fromkeys((*MATRICES, *FEED_FORWARD), dtype) | dict.fromkeys(
            NORMS, torch.float32
        )
        self._layers = [
            {
                name: checkpoint.read(f"{layer_prefix(i)}{name}.weight").dense().to(kind)
                for name, kind in kept.items()
            }
            for i in range(self.spec.layers)
        ]
        self._cos, self._sin = tables(self.spec.rope, self.spec.max_positions)

    def layer(self, index: int) -> dict[str, Tensor]:
        """Return the matrices and norms of one layer, by their names within it."""
        return {name: value.float() for name, value in self._layers[index].items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] in fp32."""
        return F.linear(hidden.to(self._head.dtype), self._head).float()

    def forward(self, inputs: Tensor, reading: Reading, anchors: Tensor) -> Tensor:
        """Return hidden states [anchors, rows, hidden] after the final norm.

        Args:
            inputs: [anchors, rows, hidden]; row k of an anchor stands k + 1 behind it, and sees the
                text up to it and the rows before its own.
            reading: of the text.
            anchors: [anchors] positions in the text.
        """
        spec, rows = self.spec, inputs.shape[1]
        positions = anchors[:, None] + 1 + torch.arange(rows)
        turn = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        hides = torch.arange(reading.keys.shape[1]) > anchors[:, None]  # [anchors, tokens]
        own = torch.ones(rows, rows, dtype=torch.bool).triu(1)
        hides = torch.cat(
            [hides[:, None].expand(-1, rows, -1), own.expand(len(anchors), -1, -1)], dim=2
        )
        x = inputs
        for layer, keys, values in zip(self._layers, reading.keys, reading.values, strict=True):
            h = F.rms_norm(x, (spec.hidden,), layer[NORMS[0]], spec.norm_eps)
            x = x + _product(
                self._attend(h, layer, (keys, values), turn, hides), layer[MATRICES[3]]
            )
            h = F.rms_norm(x, (spec.hidden,), layer[NORMS[1]], spec.norm_eps)
            gate, up = _product(h, layer[FEED_FORWARD[0]]), _product(h, layer[FEED_FORWARD[1]])
            x = x + _product(F.silu(gate) * up, layer[FEED_FORWARD[2]])
        return F.rms_norm(x, (spec.hidden,), self.final_norm, spec.norm_eps)

    def _attend(
        self,
        h: Tensor,
        layer: dict[str, Tensor],
        text: tuple[Tensor, Tensor],
        turn: tuple[Tensor, Tensor],
        hides: Tensor,
    ) -> Tensor:
        """Return [anchors, rows, heads * head_dim]."""
        spec = self.spec
        shape = (*h.shape[:2], -1, spec.head_dim)
        q, k, v = (_product(h, layer[name]).view(shape) for name in MATRICES[:3])
        q, k = rotated(q, *turn), rotated(k, *turn)
        q = q.view(*h.shape[:2], spec.kv_heads, -1, spec.head_dim)
        keys, values = text
        seen = torch.einsum("arhgd,thd->arhgt", q, keys)
        own = torch.einsum("arhgd,aohd->arhgo", q, k)
        scores = torch.cat([seen, own], dim=-1) * spec.head_dim**-0.5
        shares = scores.masked_fill(hides[:, :, None, None], -torch.inf).softmax(dim=-1)
        theirs, mine = shares[..., : len(keys)], shares[..., len(keys) :]
        read = torch.einsum("arhgt,thd->arhgd", theirs, values)
        read = read + torch.einsum("arhgo,aohd->arhgd", mine, v)
        return read.flatten(2)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Return x @ matrix.T in fp32, computed in the matrix's precision."""
    return F.linear(x.to(matrix.dtype), matrix).float()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the halves of each head against each other: rotary positions."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
