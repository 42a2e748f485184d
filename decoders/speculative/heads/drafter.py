"""Heads at work: true rows are kept as they become known, and trees are grown behind the last one.

All sequences of a step go through the head together. A tree grows by depths: of the guesses behind
a depth's nodes, the best `beam` are gone on from, while their paths are likely enough.

Law: none of its own; verified as every draft. Memory: keys and values of `window` true rows a
sequence, freed when it ends. Cost: `depth` passes of a layer and a head over the draft vocabulary.
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
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.heads.layer import KeysValues
from plait.decoders.speculative.heads.nets import HeadInputs, HeadNet, load_net
from plait.decoders.speculative.heads.options import HeadOptions
from plait.decoders.speculative.heads.ranking import DraftVocabulary, DrawParams, rank_guesses
from plait.decoders.speculative.tree import ROOT

Trigram = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class VerifiedRow:
    """A true row: what was drawn at a place, and the model's state there."""

    trigram: Trigram  # the token drawn, last, and the two before it
    state: Tensor  # [hidden]
    position: int  # of the state


@dataclass(slots=True)
class HeadState:
    """What is remembered of one sequence."""

    dice: DrawParams
    fresh: list[VerifiedRow] = field(default_factory=list)  # not projected yet
    last: VerifiedRow | None = None
    true: KeysValues | None = None  # [n, blocks, kv_heads, head_dim], n <= window


@dataclass(slots=True)
class HeadDraft:
    """A draft in the making."""

    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    paths: list[float] = field(default_factory=list)  # products of chances

    def finished(self) -> Draft:
        """Return the likeliest tokens, parents before their children."""
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.paths[i], i))[
            : self.max_tokens
        ]
        renamed = {ROOT: ROOT} | {old: new for new, old in enumerate(order)}
        return Draft(
            [self.tokens[i] for i in order],
            [self.acceptance_probs[i] for i in order],
            [renamed[self.parents[i]] for i in order],
        )


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A node that is gone on from."""

    draft: int
    node: int  # ROOT: the text
    row: int  # of the step before
    trigram: Trigram
    path: float  # chance


class HeadDrafter:
    """Drafts with a trained head."""

    name: ClassVar[str]

    def __init__(self, net: HeadNet, options: HeadOptions, *, naive: bool) -> None:
        self._net, self._options = net, options
        self._columns = DraftVocabulary(net.draft_ids, naive)
        self._token_ids: list[int] = net.draft_ids.tolist()

    def start(self, request: DecodeRequest) -> HeadState:
        """Know nothing: the first true row comes with the first token."""
        return HeadState(DrawParams(request))

    def propose(self, requests: Sequence[DraftRequest[HeadState]]) -> Sequence[Draft]:
        """Grow trees where nobody has drafted before: the head has no states behind drafts."""
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

    def commit(self, state: HeadState, text: Sequence[int], result: VerificationResult) -> None:
        """Take the states of the rows that gave tokens."""
        assert result.hidden is not None, "the worker hands over no hidden states"
        first = len(text) - len(result.emitted)
        if first < 2:  # no trigram yet
            return
        rows = result.hidden[list(result.accepted_rows[: len(result.emitted)])]
        for i, row in enumerate(rows.unbind()):
            at = first + i
            place = VerifiedRow((text[at - 2], text[at - 1], text[at]), row, at - 1)
            state.fresh.append(place)
            state.last = place
        del state.fresh[: -self._net.layer.shape.window]

    def finish(self, state: HeadState, text: Sequence[int]) -> None:
        """Free the rows."""
        state.true, state.last = None, None
        state.fresh.clear()

    def _grow(self, members: Sequence[HeadState], drafts: Sequence[HeadDraft]) -> None:
        net = self._net
        self._absorb(members)
        true, hides = _padded([member.true for member in members])
        lasts = [member.last for member in members if member.last is not None]
        states = anchors = torch.stack([last.state for last in lasts])
        tips = [LeafNode(i, ROOT, i, last.trigram, 1.0) for i, last in enumerate(lasts)]
        own = KeysValues(*(x[:, :1, :0] for x in (true.keys[:, None], true.values[:, None])))
        for step in range(self._options.depth):
            owners = [tip.draft for tip in tips]
            positions = [lasts[i].position + step for i in owners]
            x, places = net.inputs(_rows([tip.trigram for tip in tips], states, positions))
            if step > 0:
                own = _longer(own, net.layer.project(x, places))
            seen = KeysValues(true.keys[owners], true.values[owners])
            states = net.layer.forward(x, places, seen, hides[owners], own)
            logits = net.logits(states, anchors[owners], step)
            tips = self._spread(members, drafts, tips, logits, positions)
            if not tips:
                return
            rows = [tip.row for tip in tips]
            states, own = states[rows], KeysValues(own.keys[rows], own.values[rows])

    def _absorb(self, members: Sequence[HeadState]) -> None:
        """Project the new true rows of all sequences, and let go of the oldest ones."""
        fresh = [place for member in members for place in member.fresh]
        if not fresh:
            return
        found = self._net.true(
            _rows(
                [place.trigram for place in fresh],
                torch.stack([place.state for place in fresh]),
                [place.position for place in fresh],
            )
        )
        done, window = 0, self._net.layer.shape.window
        for member in members:
            rows = slice(done, done + len(member.fresh))
            done = rows.stop
            new = (found.keys[rows], found.values[rows])
            old = (x[:0] for x in new) if member.true is None else _both(member.true)
            joined = (torch.cat(pair)[-window:] for pair in zip(old, new, strict=True))
            member.true = KeysValues(*joined)
            member.fresh.clear()

    def _spread(
        self,
        members: Sequence[HeadState],
        drafts: Sequence[HeadDraft],
        tips: Sequence[LeafNode],
        logits: Tensor,
        positions: Sequence[int],
    ) -> list[LeafNode]:
        """Add the guesses behind the tips to their drafts; return what to go on from."""
        options = self._options
        dice = [members[tip.draft].dice for tip in tips]
        width = min(options.width, logits.shape[1])
        columns, shares = rank_guesses(
            logits, dice, [p + 2 for p in positions], width, self._columns
        )
        new: list[LeafNode] = []
        entries = zip(tips, columns.tolist(), shares.tolist(), strict=True)
        for row, (tip, guesses, acceptance_probs) in enumerate(entries):
            draft = drafts[tip.draft]
            for column, acceptance_prob in zip(guesses, acceptance_probs, strict=True):
                token, path = self._token_ids[column], tip.path * acceptance_prob
                trigram = (tip.trigram[1], tip.trigram[2], token)
                new.append(LeafNode(tip.draft, len(draft.tokens), row, trigram, path))
                draft.tokens.append(token)
                draft.parents.append(tip.node)
                draft.acceptance_probs.append(acceptance_prob)
                draft.paths.append(path)
        likely = [tip for tip in new if tip.path > 0 and tip.path >= options.confidence]
        likely.sort(key=lambda tip: (tip.draft, -tip.path))
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
    """Append a row's own key and value to those that lead to it, [rows, 1, steps, ...]."""
    return KeysValues(
        torch.cat([own.keys, new.keys[:, None, None]], dim=2),
        torch.cat([own.values, new.values[:, None, None]], dim=2),
    )


def _padded(true: Sequence[KeysValues | None]) -> tuple[KeysValues, Tensor]:
    """Return true rows as [sequences, n, kv_heads, head_dim], blocks in a row, and what is none."""
    flat = [(kv.keys.flatten(0, 1), kv.values.flatten(0, 1)) for kv in true if kv is not None]
    longest = max(len(keys) for keys, _ in flat)
    keys, values = (
        torch.nn.utils.rnn.pad_sequence([pair[i] for pair in flat], batch_first=True)
        for i in range(2)
    )
    lengths = torch.tensor([len(pair[0]) for pair in flat], device=keys.device)
    places = torch.arange(longest, device=keys.device)
    return KeysValues(keys, values), places >= lengths[:, None]


def make_eagle(options: HeadOptions, *, context: DrafterContext) -> HeadDrafter:
    """Build the drafter of EAGLE's head."""
    return _make(EagleDrafter, options, context)


def make_chimera(options: HeadOptions, *, context: DrafterContext) -> HeadDrafter:
    """Build the drafter of Chimera's head."""
    return _make(ChimeraDrafter, options, context)


def _make(kind: type[HeadDrafter], options: HeadOptions, context: DrafterContext) -> HeadDrafter:
    assert context.embedding is not None, "a worker that has heads has embeddings"
    path, naive = context.heads[kind.name], context.naive
    net = load_net(kind.name, path, context.embedding, options.weights, naive=naive)
    return kind(net, options, naive=naive)
