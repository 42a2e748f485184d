"""Draft heads with gradients: one decoder layer behind the model's hidden states.

A row is a place of the text: the hidden state there and the token drawn from it. True rows are fed
once; drafting goes on from a row, its anchor, on states of the head's own. In round j row i stands
for the j-th token drafted behind anchor i - j, and sees what a draft sees: the true rows up to its
anchor, and one row of each round since. Training unrolls the rounds in the same way.

Sources: EAGLE, arXiv:2401.15077, and EAGLE-3, arXiv:2503.01840 (training-time test); Chimera,
arXiv:2402.15758.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.drafter_heads.frozen import FEED_FORWARD, MATRICES, NORMS, FrozenRows, rotated
from plait.server.models.rope import tables
from plait.server.models.spec import ModelSpec

Cache = list[tuple[Tensor, Tensor]]  # keys and values: of true rows, then of each further round
NEAR = 0.02  # spread of what is drawn at random


class Layer(nn.Module):
    """A decoder layer; begins as the model's last one, its final norm as ones."""

    def __init__(self, frozen: FrozenRows, window: int) -> None:
        """Args: window is the true rows that a row sees, the last ones."""
        super().__init__()
        self.spec: ModelSpec = frozen.spec
        self.window = window
        last = frozen.layer(self.spec.layers - 1)
        names = (*MATRICES, *FEED_FORWARD, *NORMS)
        self.parts = nn.ParameterDict({short(n): nn.Parameter(last[n].clone()) for n in names})
        self.final = nn.Parameter(torch.ones(self.spec.hidden))
        self._cos, self._sin = tables(self.spec.rope, self.spec.max_positions)

    def normed(self, x: Tensor) -> Tensor:
        """Return what the layer's attention reads of its input."""
        return F.rms_norm(x, (self.spec.hidden,), self.parts[short(NORMS[0])], self.spec.norm_eps)

    def project(self, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [rows, kv_heads, head_dim] of normed inputs."""
        k, v = (F.linear(h, self.parts[short(name)]) for name in MATRICES[1:3])
        k, v = (x.view(len(h), -1, self.spec.head_dim) for x in (k, v))
        return rotated(k, self._cos[positions][:, None], self._sin[positions][:, None]), v

    def forward(self, x: Tensor, positions: Tensor, cache: Cache, depth: int) -> Tensor:
        """Return states [rows, hidden] of round `depth`, whose keys are in the cache already.

        The first entry of the cache may hold several blocks of true rows, one after the other.
        """
        spec, parts = self.spec, self.parts
        q = F.linear(self.normed(x), parts[short(MATRICES[0])]).view(len(x), -1, spec.head_dim)
        q = rotated(q, self._cos[positions][:, None], self._sin[positions][:, None])
        q = q.view(len(x), spec.kv_heads, -1, spec.head_dim)
        x = x + F.linear(self._attend(q, cache, depth), parts[short(MATRICES[3])])
        h = F.rms_norm(x, (spec.hidden,), parts[short(NORMS[1])], spec.norm_eps)
        gate, up, down = (parts[short(name)] for name in FEED_FORWARD)
        x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        return F.rms_norm(x, (spec.hidden,), self.final, spec.norm_eps)

    def _attend(self, q: Tensor, cache: Cache, depth: int) -> Tensor:
        rows, (true_keys, true_values) = len(q), cache[0]
        places = torch.arange(rows)
        behind = places[:, None] - depth - places  # how far key row t lies behind row i's anchor
        hides = ((behind < 0) | (behind >= self.window)).repeat(1, len(true_keys) // rows)
        scores = torch.einsum("ihgd,thd->ihgt", q, true_keys)
        scores = scores.masked_fill(hides[:, None, None], -torch.inf)
        own = [
            (shifted(keys, depth - j), shifted(values, depth - j))
            for j, (keys, values) in enumerate(cache[: depth + 1])
            if j > 0
        ]
        columns = [scores, *(torch.einsum("ihgd,ihd->ihg", q, keys)[..., None] for keys, _ in own)]
        shares = (torch.cat(columns, dim=-1) * self.spec.head_dim**-0.5).softmax(dim=-1)
        read = torch.einsum("ihgt,thd->ihgd", shares[..., : len(true_keys)], true_values)
        for j, (_, values) in enumerate(own):
            read = read + shares[..., len(true_keys) + j, None] * values[:, :, None]
        return read.flatten(1)


class Head(nn.Module):
    """What both heads have in common."""

    name: ClassVar[str]

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int) -> None:
        """Args: draft_ids [n], rising: the tokens that the head can draft."""
        super().__init__()
        self.layer = Layer(frozen, window)
        self.embedding = frozen.embedding
        self.draft_ids = draft_ids
        self._head = frozen.embedding[draft_ids]  # tied, and frozen

    def rounds(self, tokens: Tensor, hidden: Tensor, start: int, count: int) -> list[Tensor]:
        """Return logits [rows, draft tokens] of each round; those of row i < round are void.

        Args:
            tokens: [rows + 3]; row i has seen tokens[: i + 3], and its own was drawn last: i + 3.
            hidden: [rows, hidden] the model's.
            start: position of row 0 in the text.
            count: of rounds.
        """
        raise NotImplementedError

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the draft tokens."""
        return F.linear(states, self._head)


class EagleHead(Head):
    """One layer over pairs of a token and the state that it was drawn from."""

    name: ClassVar[str] = "eagle"

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int) -> None:
        super().__init__(frozen, draft_ids, window)
        d = frozen.spec.hidden
        mix = NEAR * torch.randn(d, 2 * d)
        mix[:, d:] += torch.eye(d)  # at first the state passes as it is
        self.mix = nn.Parameter(mix)

    def rounds(self, tokens: Tensor, hidden: Tensor, start: int, count: int) -> list[Tensor]:
        """See Head."""
        positions = start + torch.arange(len(hidden))
        drawn, states, cache, found = self.embedding[tokens[3:]], hidden, Cache(), list[Tensor]()
        for depth in range(count):
            x = F.linear(torch.cat([drawn, states], dim=1), self.mix)
            cache.append(self.layer.project(self.layer.normed(x), positions))
            states = self.layer(x, positions, cache, depth)
            found.append(self.logits(states))
            states = shifted(states, 1)
        return found


class ChimeraHead(Head):
    """A trigram encoder and one layer over it and the model's states."""

    name: ClassVar[str] = "chimera"

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int, heads: int = 4) -> None:
        super().__init__(frozen, draft_ids, window)
        d = frozen.spec.hidden
        self.trigram = nn.Parameter(torch.zeros(3 * d, 3 * d))  # so that x passes as it is
        narrow = NEAR * torch.randn(d, 3 * d)
        narrow[:, 2 * d :] += torch.eye(d)
        self.narrow = nn.Parameter(narrow)
        # In place of [lm_head, lm_head] of each head's own: its halves, before the frozen lm_head.
        self.mixes = nn.Parameter(torch.cat([torch.eye(d), torch.eye(d)], 1).repeat(heads, 1, 1))

    def encode(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return [rows, hidden] of three tokens each, the last one last."""
        x = torch.cat([self.embedding[each] for each in tokens], dim=1)
        return F.linear(x + F.silu(F.linear(x, self.trigram)), self.narrow)

    def rounds(self, tokens: Tensor, hidden: Tensor, start: int, count: int) -> list[Tensor]:
        """See Head."""
        layer, rows = self.layer, len(hidden)
        positions = start + torch.arange(rows)
        x = self.encode([tokens[1:-2], tokens[2:-1], tokens[3:]])
        cache: Cache = []
        found = []
        for depth in range(count):
            k, v = layer.project(layer.normed(x), positions + 1)
            if depth == 0:
                true_k, true_v = layer.project(layer.normed(hidden), positions)
                k, v = torch.cat([true_k, k]), torch.cat([true_v, v])
            cache.append((k, v))
            states = layer(x, positions + 1, cache, depth)
            anchor = shifted(hidden, depth)
            mixed = F.linear(torch.cat([anchor, states], dim=1), self.mixes[depth])
            found.append(self.logits(mixed))
        return found


HEADS: dict[str, type[Head]] = {head.name: head for head in (EagleHead, ChimeraHead)}


def shifted(x: Tensor, by: int) -> Tensor:
    """Return rows moved down, zeros at the top."""
    return x if by == 0 else torch.cat([torch.zeros_like(x[:by]), x[:-by]])


def short(name: str) -> str:
    """Return the last part of a tensor's name, which a module's registry takes."""
    return name.rsplit(".", 1)[-1]


def soft_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy of each row against the teacher's distribution over draft tokens."""
    return -(teacher.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)
