"""Chains drawn from a second model, for many sequences in one pass a position.

A lane is one sequence at the draft model: its cache holds some beginning of the text, and maybe
tokens of drafts that came to nothing. Before it drafts it goes back to what text and cache share
and reads what is missing, in chunks, so that a long prompt delays nobody.

Each token is drawn from the draft model's logits exactly as the target's sampler will draw from its
own: the same parameters, penalties, constraint and noise of the same position (R3g). Law: a draft
model that is the target has every draft accepted, at any temperature.
Source: Daliri, Musco and Suresh, arXiv:2408.07978 (drafter and target share their Gumbel noise).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.draft_model.protocol import DraftCache, DraftModel
from plait.kernels.noise import gumbel
from plait.kernels.row_stats import row_stats

RATE = 0.1  # how fast the seconds of a position follow what is observed


@dataclass(slots=True)
class Lane:
    """One sequence at the draft model."""

    sampling: SamplingState  # of the text so far
    cache: DraftCache
    held: list[int] = field(default_factory=list)  # the tokens of the cache
    agreed: int = 0  # of them, known to be the text's


@dataclass(slots=True)
class Wish:
    """What is to be drafted for one lane."""

    lane: Lane
    sampling: SamplingState  # behind the whole context; drawn tokens are appended to it
    context: Sequence[int]  # the text and what is drafted behind it already
    settled: int  # tokens of it that are the text's
    limit: int
    constraint: Constraint | None  # as it stands behind the context; it gets back there
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    survival: float = 1.0

    @property
    def is_open(self) -> bool:
        """Whether another token is wanted."""
        return len(self.tokens) < self.limit

    @property
    def missing(self) -> int:
        """Tokens of the context that the cache lacks."""
        return len(self.context) - self.lane.cache.length


class Chains:
    """Draws drafts from a second model."""

    def __init__(
        self,
        model: DraftModel,
        *,
        read_rows: int,
        min_survival: float,
        naive: bool = False,
    ) -> None:
        """Args: read_rows of text are read in one step; min_survival ends chains early."""
        self.seconds = 0.0  # of drawing one position, by moving average
        self._model = model
        self._read_rows = read_rows
        self._min_survival = min_survival
        self._naive = naive
        self._sampler = OrdinarySampler(naive=naive)

    def start(self, request: DecodeRequest) -> Lane:
        """Return the lane of one new sequence; nothing is read yet."""
        sampling = SamplingState(
            replace(request.sampling, logprobs=None),
            request.prompt_token_ids,
            sequence_index=request.sequence_index,
            stop_token_ids=request.stop_token_ids,
        )
        return Lane(sampling, DraftCache(request.namespace))

    def wish(
        self,
        lane: Lane,
        text: Sequence[int],
        ahead: Sequence[int],
        limit: int,
        constraint: Constraint | None,
    ) -> Wish:
        """Return what `draw` takes; nothing of it changes when the text goes on."""
        sampling = lane.sampling.fork()
        for token in ahead:
            sampling.append(token)
        return Wish(lane, sampling, [*text, *ahead], len(text), limit, constraint)

    def draw(self, wishes: Sequence[Wish]) -> list[Draft]:
        """Return a draft for each wish; an empty one while its lane reads, or finds no room."""
        ready, logits = self.read(wishes)
        while ready:
            begun = time.perf_counter()
            self._draw(ready, logits)
            kept = [i for i, wish in enumerate(ready) if wish.is_open]
            ready = [ready[i] for i in kept]
            if ready:
                logits = self._extend([(wish.lane, wish.tokens[-1:]) for wish in ready])
                self._note(time.perf_counter() - begun)
        for wish in wishes:
            if wish.constraint is not None:
                wish.constraint.rollback(len(wish.tokens))
        return [Draft(wish.tokens, wish.chances) for wish in wishes]

    def read(self, wishes: Sequence[Wish]) -> tuple[list[Wish], Tensor]:
        """Bring lanes up to their contexts; return the wishes that are there, and their logits."""
        left = self._read_rows
        feeds: list[tuple[Lane, Sequence[int]]] = []
        ready: list[tuple[int, Wish]] = []  # index into the feeds
        for wish in wishes:
            self._recall(wish)
            _rewind(wish)
        for wish in sorted(wishes, key=lambda wish: wish.missing):
            count = min(wish.missing, left)
            if count == 0 or not self._reserve(wish):
                continue
            first = wish.lane.cache.length
            if count == wish.missing:
                ready.append((len(feeds), wish))
            feeds.append((wish.lane, wish.context[first : first + count]))
            left -= count
        if not feeds:
            return [], torch.empty(0)
        logits = self._extend(feeds)
        for wish in wishes:
            self._keep(wish)
        return [wish for _, wish in ready], logits[[row for row, _ in ready]]

    def commit(self, lane: Lane, emitted: Sequence[int]) -> None:
        """Take note of new text."""
        for token in emitted:
            lane.sampling.append(token)

    def finish(self, lane: Lane) -> None:
        """Give back what a lane holds."""
        self._model.release(lane.cache)
        lane.held.clear()
        lane.agreed = 0

    def _recall(self, wish: Wish) -> None:
        """Begin where another text of the same beginning has been."""
        lane = wish.lane
        if not lane.cache.blocks:
            self._model.recall(lane.cache, wish.context[: wish.settled])
            lane.held = [*wish.context[: lane.cache.length]]

    def _keep(self, wish: Wish) -> None:
        """Offer the text to others; its last token may be fed again, so it is left out."""
        settled = min(wish.lane.cache.length, wish.settled - 1)
        self._model.keep(wish.lane.cache, wish.context[:settled])

    def _reserve(self, wish: Wish) -> bool:
        if self._model.reserve(wish.lane.cache, len(wish.context) + wish.limit):
            return True
        self.finish(wish.lane)  # others may have better use for a part of a text
        return False

    def _extend(self, feeds: Sequence[tuple[Lane, Sequence[int]]]) -> Tensor:
        logits = self._model.extend([(lane.cache, tokens) for lane, tokens in feeds])
        for lane, tokens in feeds:
            lane.held.extend(tokens)
        return logits

    def _draw(self, ready: Sequence[Wish], logits: Tensor) -> None:
        """Add the next token to each wish, or close it."""
        states = [wish.sampling for wish in ready]
        bitmask = _bitmask(ready, logits.shape[1])
        tokens = self._sampler.sample(logits, states, bitmask).token_ids
        chances = self._chances(logits, states, bitmask)
        for wish, token, chance in zip(ready, tokens, chances, strict=True):
            if wish.constraint is not None and not wish.constraint.accept_token(token):
                wish.limit = len(wish.tokens)
                continue
            wish.tokens.append(token)
            wish.chances.append(chance)
            wish.sampling.append(token)
            wish.survival *= chance
            if wish.survival < self._min_survival or token in wish.sampling.stop_token_ids:
                wish.limit = len(wish.tokens)

    def _note(self, seconds: float) -> None:
        self.seconds += (RATE if self.seconds else 1.0) * (seconds - self.seconds)

    def _chances(
        self, logits: Tensor, states: Sequence[SamplingState], bitmask: Tensor | None
    ) -> list[float]:
        """Return how surely each row's token has won: its share in softmax(scores + noise).

        The target draws with the same noise, so what counts is by how much the token leads, not
        how probable it was before the noise was known. Greedy rows have none.
        """
        scores = self._sampler.scores(logits, states, bitmask)
        drawn = [row for row, state in enumerate(states) if not state.greedy]
        if drawn:
            keys = torch.tensor([states[row].key for row in drawn], device=logits.device)
            scores[drawn] += gumbel(keys, logits.shape[1], naive=self._naive)
        stats = row_stats(scores, entropy=False, naive=self._naive)
        chances: list[float] = (stats.top_scores[:, 0] - stats.logsumexp).exp().tolist()
        return chances


def _rewind(wish: Wish) -> None:
    """Forget what the cache holds beyond the context, whose last token is always fed again."""
    lane, context = wish.lane, wish.context
    shared, stop = lane.agreed, min(len(lane.held), len(context) - 1)
    while shared < stop and lane.held[shared] == context[shared]:
        shared += 1
    shared = min(shared, stop)
    del lane.held[shared:]
    lane.cache.length = shared
    lane.agreed = min(shared, wish.settled)


def _bitmask(wishes: Sequence[Wish], vocab_size: int) -> Tensor | None:
    """Return what the constraints allow, [wishes, words] int32; None: there are none."""
    if all(wish.constraint is None for wish in wishes):
        return None
    bitmask = torch.full((len(wishes), -(-vocab_size // 32)), -1, dtype=torch.int32)
    for row, wish in enumerate(wishes):
        if wish.constraint is not None:
            wish.constraint.fill_bitmask(bitmask, row)
    return bitmask
