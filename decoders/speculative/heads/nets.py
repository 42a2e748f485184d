"""EAGLE's and Chimera's networks: the inputs of the layer, and the logits of its states.

A row is a position of the text: its hidden state, the token sampled from it, and the two tokens
before. Verified rows have the target's hidden states; draft rows have those of the head.

Sources: EAGLE, arXiv:2401.15077; EAGLE-3, arXiv:2503.01840; Chimera, arXiv:2402.15758.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import silu

from plait.decoders.speculative.context import Embedding
from plait.decoders.speculative.heads.layer import HeadLayer, KeysValues, LayerShape, read_weight
from plait.kernels.backend import KernelBackend
from plait.kernels.linear import Mode, Weight, from_dense


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Rows of several sequences, of drafts or verified ones."""

    trigrams: Tensor  # [rows, 3] int64: the token sampled there, last, and the two before it
    states: Tensor  # [rows, hidden]; in a draft, the head's output for the row before
    positions: Tensor  # [rows] of the states: one before that of the token


class HeadNet(Protocol):
    """A draft head."""

    layer: HeadLayer
    draft_ids: Tensor  # [n] int64, rising: the draft vocabulary
    keys_per_row: int  # keys and values that a verified row has

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Return the inputs of the layer [rows, hidden] and their positions [rows]."""

    def verified(self, rows: HeadInputs) -> KeysValues:
        """Return keys and values [rows, keys_per_row, kv_heads, head_dim] of verified rows."""

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Return logits [rows, n] of the layer's states after `step` steps.

        anchors: [rows, hidden], the target's state at the last verified row of each sequence.
        """


class EagleNet:
    """One layer over pairs of a token and the state that it was sampled from."""

    keys_per_row = 1

    def __init__(self, weights: HeadWeights) -> None:
        self.layer, self.draft_ids = weights.layer, weights.draft_ids
        self._weights = weights
        self._mix = weights.weight("mix")

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Project token and state together; the position is that of the state."""
        drawn = self._weights.embedded(rows.trigrams[:, 2])
        pairs = torch.cat([drawn, rows.states], dim=1)
        return self._weights.product(pairs, self._mix), rows.positions

    def verified(self, rows: HeadInputs) -> KeysValues:
        """Return the keys and values of the inputs."""
        found = self.layer.project(*self.inputs(rows))
        return KeysValues(found.keys[:, None], found.values[:, None])

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Apply the target's lm_head."""
        return self._weights.logits(states)


class ChimeraNet:
    """A trigram encoder, and one layer over its codes and the target's states."""

    keys_per_row = 2

    def __init__(self, weights: HeadWeights) -> None:
        self.layer, self.draft_ids = weights.layer, weights.draft_ids
        self._weights = weights
        self._trigram = weights.weight("trigram")
        self._narrow = weights.weight("narrow")
        steps = takewhile(lambda step: f"mixes.{step}" in weights.tensors, count())
        self._mixes = [weights.weight(f"mixes.{step}") for step in steps]

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Encode three tokens; the position is that of the last."""
        x = self._weights.embedded(rows.trigrams).flatten(1)
        wide = x + silu(self._weights.product(x, self._trigram))
        return self._weights.product(wide, self._narrow), rows.positions + 1

    def verified(self, rows: HeadInputs) -> KeysValues:
        """Return the keys and values of the states and of the codes."""
        states = self.layer.project(rows.states, rows.positions)
        codes = self.layer.project(*self.inputs(rows))
        return KeysValues(
            torch.stack([states.keys, codes.keys], 1), torch.stack([states.values, codes.values], 1)
        )

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Mix the last verified state with the layer's, by the head of this step."""
        mix = self._mixes[min(step, len(self._mixes) - 1)]
        return self._weights.logits(self._weights.product(torch.cat([anchors, states], dim=1), mix))


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The weights of a head, and how to apply them."""

    tensors: Mapping[str, Tensor]
    layer: HeadLayer
    draft_ids: Tensor
    embedding: Embedding  # of the served model
    lm_head: Weight  # the rows of the draft vocabulary; tied to the embedding
    mode: Mode
    backend: KernelBackend

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return embeddings [*tokens, hidden], scaled as in training."""
        return self.embedding[tokens].float() * self.tensors["token_scale"]

    def weight(self, name: str) -> Weight:
        """Pack a matrix."""
        return self.backend.pack(read_weight(self.tensors, name, self.mode))

    def product(self, x: Tensor, weight: Weight) -> Tensor:
        """Return x @ weight.T."""
        return self.backend.linear(x, weight)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits over the draft vocabulary."""
        return self.product(states, self.lm_head)


NETS: Mapping[str, Callable[[HeadWeights], HeadNet]] = {"eagle": EagleNet, "chimera": ChimeraNet}


def load_net(
    name: str, path: Path, embedding: Embedding, mode: Mode, backend: KernelBackend
) -> HeadNet:
    """Load a head; the metadata of its file have the layer's shape as JSON under `shape`."""
    with safe_open(path, framework="pt", device=str(backend.device)) as file:
        shape = LayerShape(**json.loads(file.metadata()["shape"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    draft_ids = tensors["draft_ids"].long()
    lm_head = backend.pack(from_dense(embedding[draft_ids].float(), mode))
    layer = HeadLayer(tensors, shape, mode, backend)
    return NETS[name](HeadWeights(tensors, layer, draft_ids, embedding, lm_head, mode, backend))
