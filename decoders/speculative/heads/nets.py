"""What the heads compute: EAGLE's and Chimera's inputs to the layer, and logits of its states.

A row is a place of the text: the hidden state there, and the token drawn from it with the two
before. True rows carry the model's states; a draft's rows go on without.

Sources: EAGLE, arXiv:2401.15077; EAGLE-3, arXiv:2503.01840; Chimera, arXiv:2402.15758.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import silu

from plait.decoders.speculative.heads.layer import HeadLayer, KeysValues, LayerShape
from plait.kernels.linear import Mode, Weight, from_dense, linear


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Places of texts, in a draft or true."""

    trigrams: Tensor  # [rows, 3] int64: the token drawn there, last, and the two before it
    states: Tensor  # [rows, hidden]: there; in a draft, what the head made of the row before
    positions: Tensor  # [rows] of the state in the text: one before its token's


class HeadNet(Protocol):
    """A head, ready to run."""

    layer: HeadLayer
    draft_ids: Tensor  # [n] int64, rising: the tokens that it can draft
    blocks: int  # keys that a true row has

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Return what the layer reads, [rows, hidden], and at which positions."""

    def true(self, rows: HeadInputs) -> KeysValues:
        """Return the keys and values of true rows, [rows, blocks, kv_heads, head_dim]."""

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Return logits [rows, n] of the layer's states after `step` steps.

        anchors: [rows, hidden] the model's state at the last true row of each.
        """


class EagleNet:
    """One layer over pairs of a token and the state that it was drawn from."""

    blocks = 1

    def __init__(self, parts: HeadWeights) -> None:
        self.layer, self.draft_ids = parts.layer, parts.draft_ids
        self._parts = parts
        self._mix = parts.weight(parts.tensors["mix"])

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Mix token and state; a row stands where its state does."""
        drawn = self._parts.embedding[rows.trigrams[:, 2]].float()
        pairs = torch.cat([drawn, rows.states], dim=1)
        return self._parts.product(pairs, self._mix), rows.positions

    def true(self, rows: HeadInputs) -> KeysValues:
        """Project the inputs."""
        found = self.layer.project(*self.inputs(rows))
        return KeysValues(found.keys[:, None], found.values[:, None])

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Read the states as the model's own."""
        return self._parts.logits(states)


class ChimeraNet:
    """A trigram encoder, and one layer over it and the model's states."""

    blocks = 2

    def __init__(self, parts: HeadWeights) -> None:
        self.layer, self.draft_ids = parts.layer, parts.draft_ids
        self._parts = parts
        self._trigram = parts.weight(parts.tensors["trigram"])
        self._narrow = parts.weight(parts.tensors["narrow"])
        self._mixes = [parts.weight(mix) for mix in parts.tensors["mixes"]]

    def inputs(self, rows: HeadInputs) -> tuple[Tensor, Tensor]:
        """Encode three tokens; the code stands where the last of them does."""
        x = self._parts.embedding[rows.trigrams].float().flatten(1)
        wide = x + silu(self._parts.product(x, self._trigram))
        return self._parts.product(wide, self._narrow), rows.positions + 1

    def true(self, rows: HeadInputs) -> KeysValues:
        """Project the model's states and the codes."""
        states = self.layer.project(rows.states, rows.positions)
        codes = self.layer.project(*self.inputs(rows))
        return KeysValues(
            torch.stack([states.keys, codes.keys], 1), torch.stack([states.values, codes.values], 1)
        )

    def logits(self, states: Tensor, anchors: Tensor, step: int) -> Tensor:
        """Read a mixture of the last true state and the layer's, by the head of this step."""
        mix = self._mixes[min(step, len(self._mixes) - 1)]
        return self._parts.logits(self._parts.product(torch.cat([anchors, states], dim=1), mix))


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """What nets are made of."""

    tensors: Mapping[str, Tensor]
    layer: HeadLayer
    draft_ids: Tensor
    embedding: Tensor  # [vocab, hidden] of the served model
    head: Weight  # its rows of the draft tokens: the lm_head is tied
    mode: Mode
    naive: bool

    def weight(self, values: Tensor) -> Weight:
        """Pack a matrix."""
        return from_dense(values.float(), self.mode, naive=self.naive)

    def product(self, x: Tensor, weight: Weight) -> Tensor:
        """Return x @ weight.T."""
        return linear(x, weight, naive=self.naive)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the draft tokens."""
        return self.product(states, self.head)


NETS: Mapping[str, Callable[[HeadWeights], HeadNet]] = {"eagle": EagleNet, "chimera": ChimeraNet}


def load_net(name: str, path: Path, embedding: Tensor, mode: Mode, *, naive: bool) -> HeadNet:
    """Return the head in a file; its metadata hold the layer's shape as JSON under `shape`."""
    with safe_open(path, framework="pt", device=str(embedding.device)) as file:
        shape = LayerShape(**json.loads(file.metadata()["shape"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    draft_ids = tensors["draft_ids"].long()
    head = from_dense(embedding[draft_ids].float(), mode, naive=naive)
    layer = HeadLayer(tensors, shape, mode, naive=naive)
    return NETS[name](HeadWeights(tensors, layer, draft_ids, embedding, head, mode, naive))
