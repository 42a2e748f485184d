"""Drafting with a trained head: verified rows are cached, and a tree grows behind the last one.

All sequences of a step go through the head together. A tree grows depth by depth: the best `beam`
nodes of a depth are extended while their path probability is at least `confidence`.

A verified row is the target's hidden state at a position with the token sampled there. The states
come with each pass, so a state of this drafter that is built from a text alone has no rows and
drafts nothing before the next pass.

Law: none of its own; every draft is verified. Memory: keys and values of `window` verified rows a
sequence, freed when it ends. Cost: `depth` passes of a layer and of a head over the draft
vocabulary.
Source: see drafters/eagle.py and drafters/chimera.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.heads.layer import KeysValues
from plait.decoders.speculative.heads.nets import HeadInputs, HeadNet, load_net
from plait.decoders.speculative.heads.options import HeadOptions
from plait.decoders.speculative.heads.ranking import DraftVocabulary, DrawParams, rank_guesses
from plait.decoders.speculative.tree import ROOT
from plait.kernels.backend import KernelBackend

Trigram = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class VerifiedRow:
    """The target's hidden state at a position, with the token sampled there."""

    trigram: Trigram  # the token sampled, last, and the two before it
    state: Tensor  # [hidden]
    position: int  # of the state


@dataclass(slots=True)
class HeadState:
    """The verified rows of one sequence."""

    draws: DrawParams
    new: list[VerifiedRow] = field(default_factory=list)  # not projected yet
    last: VerifiedRow | None = None
    verified: KeysValues | None = None  # [n, keys_per_row, kv_heads, head_dim], n <= window


@dataclass(slots=True)
class HeadDraft:
    """A draft that grows."""

    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    path_probs: list[float] = field(default_factory=list)

    def finished(self) -> Draft:
        """Return the tokens with the highest path probabilities, parents before children."""
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.path_probs[i], i))[
            : self.max_tokens
        ]
        renumbered = {ROOT: ROOT} | {old: new for new, old in enumerate(order)}
        return Draft(
            [self.tokens[i] for i in order],
            [self.acceptance_probs[i] for i in order],
            [renumbered[self.parents[i]] for i in order],
        )


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A node that is extended in the next step."""

    draft: int
    node: int  # ROOT: the end of the text
    row: int  # of the last step
    trigram: Trigram
    path_prob: float


class HeadDrafter(Drafter[HeadState]):
    """Drafts with a trained head."""

    name: ClassVar[str]

    def __init__(self, net: HeadNet, options: HeadOptions, backend: KernelBackend) -> None:
        self._net, self._options = net, options
        self._vocabulary = DraftVocabulary(backend, net.draft_ids)
        self._token_ids: list[int] = net.draft_ids.tolist()

    def start(self, request: DecodeRequest) -> HeadState:
        """Return the state without rows; the first one comes with the next pass."""
        return HeadState(DrawParams(request))

    def propose(self, requests: Sequence[DraftRequest[HeadState]]) -> Sequence[Draft]:
        """Return a tree for each sequence with rows and no draft prefix.

        Behind a draft prefix the head has no hidden states.
        """
        drafts = [Draft()] * len(requests)
        mine = [
            i
            for i, request in enumerate(requests)
            if request.state.last is not None and not request.draft_prefix
        ]
        if mine:
            grown = [HeadDraft(requests[i].max_tokens) for i in mine]
            self._grow([requests[i].state for i in mine], grown)
            for i, each in zip(mine, grown, strict=True):
                drafts[i] = each.finished()
        return drafts

    def observe(self, state: HeadState, text: Sequence[int], result: VerificationResult) -> None:
        """Add the hidden states of the accepted rows."""
        assert result.hidden is not None, "the worker provides no hidden states"
        first = len(text) - len(result.emitted)
        if first < 2:  # no trigram yet
            return
        rows = result.hidden[list(result.accepted_rows[: len(result.emitted)])]
        for i, row in enumerate(rows.unbind()):
            at = first + i
            verified = VerifiedRow((text[at - 2], text[at - 1], text[at]), row, at - 1)
            state.new.append(verified)
            state.last = verified
        del state.new[: -self._net.layer.shape.window]

    def finish(self, state: HeadState, text: Sequence[int]) -> None:
        """Free the rows."""
        state.verified, state.last = None, None
        state.new.clear()

    def _grow(self, states: Sequence[HeadState], drafts: Sequence[HeadDraft]) -> None:
        net = self._net
        self._project_new(states)
        verified, mask = _padded([state.verified for state in states])
        lasts = [state.last for state in states if state.last is not None]
        hidden = anchors = torch.stack([last.state for last in lasts])
        tips = [LeafNode(i, ROOT, i, last.trigram, 1.0) for i, last in enumerate(lasts)]
        own = KeysValues(
            *(x[:, :1, :0] for x in (verified.keys[:, None], verified.values[:, None]))
        )
        for step in range(self._options.depth):
            owners = [tip.draft for tip in tips]
            positions = [lasts[i].position + step for i in owners]
            x, places = net.inputs(_rows([tip.trigram for tip in tips], hidden, positions))
            if step > 0:
                own = _longer(own, net.layer.project(x, places))
            seen = KeysValues(verified.keys[owners], verified.values[owners])
            hidden = net.layer.forward(x, places, seen, mask[owners], own)
            logits = net.logits(hidden, anchors[owners], step)
            tips = self._extend(states, drafts, tips, logits, positions)
            if not tips:
                return
            rows = [tip.row for tip in tips]
            hidden, own = hidden[rows], KeysValues(own.keys[rows], own.values[rows])

    def _project_new(self, states: Sequence[HeadState]) -> None:
        """Cache keys and values of the new verified rows, and drop those beyond the window."""
        new = [row for state in states for row in state.new]
        if not new:
            return
        found = self._net.verified(
            _rows(
                [row.trigram for row in new],
                torch.stack([row.state for row in new]),
                [row.position for row in new],
            )
        )
        done, window = 0, self._net.layer.shape.window
        for state in states:
            rows = slice(done, done + len(state.new))
            done = rows.stop
            added = (found.keys[rows], found.values[rows])
            old = (x[:0] for x in added) if state.verified is None else _both(state.verified)
            joined = (torch.cat(pair)[-window:] for pair in zip(old, added, strict=True))
            state.verified = KeysValues(*joined)
            state.new.clear()

    def _extend(
        self,
        states: Sequence[HeadState],
        drafts: Sequence[HeadDraft],
        tips: Sequence[LeafNode],
        logits: Tensor,
        positions: Sequence[int],
    ) -> list[LeafNode]:
        """Add the children of the tips to their drafts; return the nodes to extend next."""
        options = self._options
        draws = [states[tip.draft].draws for tip in tips]
        width = min(options.width, logits.shape[1])
        columns, shares = rank_guesses(
            logits, draws, [p + 2 for p in positions], width, self._vocabulary
        )
        new: list[LeafNode] = []
        entries = zip(tips, columns.tolist(), shares.tolist(), strict=True)
        for row, (tip, guesses, probs) in enumerate(entries):
            draft = drafts[tip.draft]
            for column, prob in zip(guesses, probs, strict=True):
                token, path_prob = self._token_ids[column], tip.path_prob * prob
                trigram = (tip.trigram[1], tip.trigram[2], token)
                new.append(LeafNode(tip.draft, len(draft.tokens), row, trigram, path_prob))
                draft.tokens.append(token)
                draft.parents.append(tip.node)
                draft.acceptance_probs.append(prob)
                draft.path_probs.append(path_prob)
        likely = [tip for tip in new if tip.path_prob > 0 and tip.path_prob >= options.confidence]
        likely.sort(key=lambda tip: (tip.draft, -tip.path_prob))
        groups = (list(group) for _, group in groupby(likely, key=lambda tip: tip.draft))
        return [tip for group in groups for tip in group[: options.beam]]


class EagleDrafter(HeadDrafter):
    """Drafts with EAGLE's head."""

    name: ClassVar[str] = "eagle"


class ChimeraDrafter(HeadDrafter):
    """Drafts with Chimera's head."""

    name: ClassVar[str] = "chimera"


def _rows(trigrams: Sequence[Trigram], states: Tensor, positions: Sequence[int]) -> HeadInputs:
    device = states.device
    return HeadInputs(
        torch.tensor(trigrams, device=device), states, torch.tensor(positions, device=device)
    )


def _both(pair: KeysValues) -> tuple[Tensor, Tensor]:
    return pair.keys, pair.values


def _longer(own: KeysValues, new: KeysValues) -> KeysValues:
    """Append the keys and values of rows to those of their ancestors, [rows, 1, steps, ...]."""
    return KeysValues(
        torch.cat([own.keys, new.keys[:, None, None]], dim=2),
        torch.cat([own.values, new.values[:, None, None]], dim=2),
    )


def _padded(verified: Sequence[KeysValues | None]) -> tuple[KeysValues, Tensor]:
    """Return verified rows as [sequences, n, kv_heads, head_dim], and where they are padding."""
    flat = [(kv.keys.flatten(0, 1), kv.values.flatten(0, 1)) for kv in verified if kv is not None]
    longest = max(len(keys) for keys, _ in flat)
    keys, values = (
        torch.nn.utils.rnn.pad_sequence([pair[i] for pair in flat], batch_first=True)
        for i in range(2)
    )
    lengths = torch.tensor([len(pair[0]) for pair in flat], device=keys.device)
    indices = torch.arange(longest, device=keys.device)
    return KeysValues(keys, values), indices >= lengths[:, None]


def make_eagle(options: HeadOptions, *, context: DrafterContext) -> HeadDrafter:
    """Build the drafter of EAGLE's head."""
    return _make(EagleDrafter, options, context)


def make_chimera(options: HeadOptions, *, context: DrafterContext) -> HeadDrafter:
    """Build the drafter of Chimera's head."""
    return _make(ChimeraDrafter, options, context)


def _make(kind: type[HeadDrafter], options: HeadOptions, context: DrafterContext) -> HeadDrafter:
    assert context.embedding is not None, "a worker with heads has embeddings"
    path, backend = context.heads[kind.name], context.backend
    net = load_net(kind.name, path, context.embedding, options.weights, backend)
    return kind(net, options, backend)
