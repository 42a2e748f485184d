"""Draft heads with gradients: one decoder layer behind the model's hidden states.

A row is a place of a text: the hidden state there and the token drawn from it. True rows are fed
once; drafting goes on from a row, its anchor, on states of the head's own. In round j row i stands
for the j-th token drafted behind anchor i - j, and sees what a draft sees: the true rows up to its
anchor, and one row of each round since. Training unrolls the rounds in the same way.

Sources: EAGLE, arXiv:2401.15077, and EAGLE-3, arXiv:2503.01840 (training-time test); Chimera,
arXiv:2402.15758.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.drafter_heads.frozen import FEED_FORWARD, MATRICES, NORMS, FrozenRows, rotated
from plait.server.models.rope import tables
from plait.server.models.spec import ModelSpec

Cache = list[tuple[Tensor, Tensor]]  # keys and values: of true rows, then of each further round
WRITERS = (MATRICES[3], FEED_FORWARD[2])  # which add to the layer's input
UNSURE = 0.6  # of the model's final norm: a new head is less sure than the model


class Layer(nn.Module):
    """A decoder layer; begins as the model's last one, but adds nothing to its input."""

    def __init__(self, frozen: FrozenRows, window: int) -> None:
        """Args: window is the true rows that a row sees, the last ones."""
        super().__init__()
        self.spec: ModelSpec = frozen.spec
        self.window = window
        last = frozen.layer(self.spec.layers - 1)
        self.parts = nn.ParameterDict(
            {
                short(name): nn.Parameter(last[name] * (name not in WRITERS))
                for name in (*MATRICES, *FEED_FORWARD, *NORMS)
            }
        )
        self.final = nn.Parameter(UNSURE * frozen.final_norm)
        self._cos, self._sin = tables(self.spec.rope, self.spec.max_positions)

    def normed(self, x: Tensor) -> Tensor:
        """Return what the layer's attention reads of its input."""
        return F.rms_norm(x, (self.spec.hidden,), self.parts[short(NORMS[0])], self.spec.norm_eps)

    def project(self, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [texts, rows, kv_heads, head_dim] of normed inputs."""
        k, v = (F.linear(h, self.parts[short(name)]) for name in MATRICES[1:3])
        k, v = (x.view(*x.shape[:2], -1, self.spec.head_dim) for x in (k, v))
        return self._turned(k, positions), v

    def forward(self, x: Tensor, positions: Tensor, cache: Cache, depth: int) -> Tensor:
        """Return states [texts, rows, hidden] of round `depth`, whose keys are in the cache.

        Args:
            x: [texts, rows, hidden].
            positions: [texts, rows].
            cache: its first entry may hold several blocks of true rows, one after the other.
            depth: of the round.
        """
        spec, parts = self.spec, self.parts
        q = F.linear(self.normed(x), parts[short(MATRICES[0])])
        q = self._turned(q.view(*x.shape[:2], -1, spec.head_dim), positions)
        q = q.view(*x.shape[:2], spec.kv_heads, -1, spec.head_dim)
        x = x + F.linear(self._attend(q, cache, depth), parts[short(MATRICES[3])])
        h = F.rms_norm(x, (spec.hidden,), parts[short(NORMS[1])], spec.norm_eps)
        gate, up, down = (parts[short(name)] for name in FEED_FORWARD)
        x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        return F.rms_norm(x, (spec.hidden,), self.final, spec.norm_eps)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = (table[positions][:, :, None].to(x.dtype) for table in (self._cos, self._sin))
        return rotated(x, cos, sin)

    def _attend(self, q: Tensor, cache: Cache, depth: int) -> Tensor:
        rows, (true_keys, true_values) = q.shape[1], cache[0]
        places = torch.arange(rows)
        behind = places[:, None] - depth - places  # how far key row t lies behind row i's anchor
        hides = ((behind < 0) | (behind >= self.window)).repeat(1, true_keys.shape[1] // rows)
        scores = torch.einsum("bihgd,bthd->bhgit", q, true_keys)
        scores = scores.masked_fill(hides, -torch.inf)
        own = [
            (shifted(keys, depth - j), shifted(values, depth - j))
            for j, (keys, values) in enumerate(cache[: depth + 1])
            if j > 0
        ]
        columns = [torch.einsum("bihgd,bihd->bhgi", q, keys)[..., None] for keys, _ in own]
        scores = torch.cat([scores, *columns], dim=-1)
        shares = (scores * self.spec.head_dim**-0.5).softmax(dim=-1)
        count = true_keys.shape[1]
        read = torch.einsum("bhgit,bthd->bihgd", shares[..., :count], true_values)
        for j, (_, values) in enumerate(own):
            read = read + torch.einsum("bhgi,bihd->bihgd", shares[..., count + j], values)
        return read.flatten(2)


class Head(nn.Module):
    """What both heads have in common."""

    name: ClassVar[str]

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int) -> None:
        """Args: draft_ids [n], rising: the tokens that the head can draft."""
        super().__init__()
        self.layer = Layer(frozen, window)
        self.embedding = frozen.embedding
        self.draft_ids = draft_ids
        # Embeddings are far smaller than states, beside which a head is to read them.
        self.token_scale: Tensor
        self.register_buffer("token_scale", 1 / frozen.embedding.std())
        self._head = frozen.embedding[draft_ids]  # tied, and frozen

    def rounds(self, tokens: Tensor, hidden: Tensor, start: Tensor, count: int) -> list[Tensor]:
        """Return states [texts, rows, hidden] of each round; those of row i < round are void.

        They stand for the model's one place on, and give logits in the same way.

        Args:
            tokens: [texts, rows + 3]; row i has seen tokens[: i + 3], and its own was drawn last:
                i + 3.
            hidden: [texts, rows, hidden] the model's.
            start: [texts] positions of row 0 in the text.
            count: of rounds.
        """
        raise NotImplementedError

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return embeddings as large as states."""
        return self.embedding[tokens] * self.token_scale

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the draft tokens."""
        return F.linear(states, self._head)

    def expected(self, states: Tensor) -> Tensor:
        """Return the mean lm_head row of the draft tokens under the logits of states."""
        return self.logits(states).softmax(dim=-1).to(self._head.dtype) @ self._head

    def losses(self, states: Tensor, expected: Tensor) -> Tensor:
        """Return the cross-entropy of each row against another distribution of draft tokens.

        Args:
            states: [..., hidden] of the rows.
            expected: [..., hidden] of the other distribution; the logits' mean is linear in it.
        """
        return self.logits(states).float().logsumexp(dim=-1) - (states * expected).sum(dim=-1)


class EagleHead(Head):
    """One layer over pairs of a token and the state that it was drawn from."""

    name: ClassVar[str] = "eagle"

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int) -> None:
        super().__init__(frozen, draft_ids, window)
        own = torch.eye(frozen.spec.hidden)
        self.mix = nn.Parameter(torch.cat([own, own], dim=1))

    def rounds(self, tokens: Tensor, hidden: Tensor, start: Tensor, count: int) -> list[Tensor]:
        """See Head."""
        positions = start[:, None] + torch.arange(hidden.shape[1])
        drawn, states, cache, found = self.embedded(tokens[:, 3:]), hidden, Cache(), list[Tensor]()
        for depth in range(count):
            x = F.linear(torch.cat([drawn, states], dim=-1), self.mix).float()
            cache.append(self.layer.project(self.layer.normed(x), positions))
            states = self.layer(x, positions, cache, depth)
            found.append(states)
            states = shifted(states, 1)
        return found


class ChimeraHead(Head):
    """A trigram encoder and one layer over it and the model's states."""

    name: ClassVar[str] = "chimera"

    def __init__(self, frozen: FrozenRows, draft_ids: Tensor, window: int, heads: int = 4) -> None:
        super().__init__(frozen, draft_ids, window)
        d = frozen.spec.hidden
        own = torch.eye(d)
        self.trigram = nn.Parameter(torch.randn(3 * d, 3 * d) * (3 * d) ** -0.5)
        narrow = torch.randn(d, 3 * d) * (3 * d) ** -0.5
        narrow[:, 2 * d :] += own  # the last token passes as it is
        self.narrow = nn.Parameter(narrow)
        # In place of [lm_head, lm_head] of each head's own: its halves, before the frozen lm_head.
        self.mixes = nn.Parameter(torch.cat([own, own], dim=1).repeat(heads, 1, 1) / 2)

    def wide(self, tokens: Tensor) -> Tensor:
        """Return codes [texts, rows, 3 * hidden] of the tokens [texts, rows + 2], of three each."""
        x = self.embedded(tokens)
        x = torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=-1)
        return x + F.silu(F.linear(x, self.trigram))

    def rounds(self, tokens: Tensor, hidden: Tensor, start: Tensor, count: int) -> list[Tensor]:
        """See Head."""
        layer = self.layer
        positions = start[:, None] + torch.arange(hidden.shape[1])
        x = F.linear(self.wide(tokens[:, 1:]), self.narrow).float()
        code_k, code_v = layer.project(layer.normed(x), positions + 1)
        true_k, true_v = layer.project(layer.normed(hidden), positions)
        cache = [(torch.cat([true_k, code_k], dim=1), torch.cat([true_v, code_v], dim=1))]
        found = []
        for depth in range(count):
            states = layer(x, positions + 1, cache, depth)
            anchor = shifted(hidden, depth)
            found.append(F.linear(torch.cat([anchor, states], dim=-1), self.mixes[depth]))
            cache.append((code_k, code_v))
        return found


HEADS: dict[str, type[Head]] = {head.name: head for head in (EagleHead, ChimeraHead)}


def shifted(x: Tensor, by: int) -> Tensor:
    """Return rows [texts, rows, ...] moved down, zeros at the top."""
    return x if by == 0 else torch.cat([torch.zeros_like(x[:, :by]), x[:, :-by]], dim=1)


def spread(x: Tensor, eps: float) -> Tensor:
    """Return rows whose squares have the mean 1."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def short(name: str) -> str:
    """Return the last part of a tensor's name, which a module's registry takes."""
    return name.rsplit(".", 1)[-1]
