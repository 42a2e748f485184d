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
class DraftSequence:
    """One sequence at the draft model."""

    sampling: SamplingState  # of the text so far
    cache: DraftCache
    held: list[int] = field(default_factory=list)  # the tokens of the cache
    agreed: int = 0  # of them, known to be the text's


@dataclass(slots=True)
class DraftJob:
    """What is to be drafted for one lane."""

    sequence: DraftSequence
    sampling: SamplingState  # behind the whole context; drawn tokens are appended to it
    context: Sequence[int]  # the text and what is drafted behind it already
    settled: int  # tokens of it that are the text's
    max_tokens: int
    constraint: Constraint | None  # as it stands behind the context; it gets back there
    tokens: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    path_prob: float = 1.0

    @property
    def is_open(self) -> bool:
        """Whether another token is wanted."""
        return len(self.tokens) < self.max_tokens

    @property
    def missing(self) -> int:
        """Tokens of the context that the cache lacks."""
        return len(self.context) - self.sequence.cache.length


class DraftModelRunner:
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

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Return the lane of one new sequence; nothing is read yet."""
        sampling = SamplingState(
            replace(request.sampling, logprobs=None),
            request.prompt_token_ids,
            sequence_index=request.sequence_index,
            stop_token_ids=request.stop_token_ids,
        )
        return DraftSequence(sampling, DraftCache(request.namespace))

    def job(
        self,
        sequence: DraftSequence,
        text: Sequence[int],
        draft_prefix: Sequence[int],
        max_tokens: int,
        constraint: Constraint | None,
    ) -> DraftJob:
        """Return what `draw` takes; nothing of it changes when the text goes on."""
        sampling = sequence.sampling.fork()
        for token in draft_prefix:
            sampling.append(token)
        return DraftJob(
            sequence, sampling, [*text, *draft_prefix], len(text), max_tokens, constraint
        )

    def draw(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """Return a draft for each wish; an empty one while its lane reads, or finds no room."""
        ready, logits = self.read(jobs)
        while ready:
            begun = time.perf_counter()
            self._draw(ready, logits)
            kept = [i for i, job in enumerate(ready) if job.is_open]
            ready = [ready[i] for i in kept]
            if ready:
                logits = self._extend([(job.sequence, job.tokens[-1:]) for job in ready])
                self._note(time.perf_counter() - begun)
        for job in jobs:
            if job.constraint is not None:
                job.constraint.rollback(len(job.tokens))
        return [Draft(job.tokens, job.acceptance_probs) for job in jobs]

    def read(self, jobs: Sequence[DraftJob]) -> tuple[list[DraftJob], Tensor]:
        """Bring lanes up to their contexts; return the wishes that are there, and their logits."""
        left = self._read_rows
        feeds: list[tuple[DraftSequence, Sequence[int]]] = []
        ready: list[tuple[int, DraftJob]] = []  # index into the feeds
        for job in jobs:
            self._recall(job)
            _rewind(job)
        for job in sorted(jobs, key=lambda job: job.missing):
            count = min(job.missing, left)
            if count == 0 or not self._reserve(job):
                continue
            first = job.sequence.cache.length
            if count == job.missing:
                ready.append((len(feeds), job))
            feeds.append((job.sequence, job.context[first : first + count]))
            left -= count
        if not feeds:
            return [], torch.empty(0)
        logits = self._extend(feeds)
        for job in jobs:
            self._keep(job)
        return [job for _, job in ready], logits[[row for row, _ in ready]]

    def commit(self, sequence: DraftSequence, emitted: Sequence[int]) -> None:
        """Take note of new text."""
        for token in emitted:
            sequence.sampling.append(token)

    def finish(self, sequence: DraftSequence) -> None:
        """Give back what a lane holds."""
        self._model.release(sequence.cache)
        sequence.held.clear()
        sequence.agreed = 0

    def _recall(self, job: DraftJob) -> None:
        """Begin where another text of the same beginning has been."""
        sequence = job.sequence
        if not sequence.cache.blocks:
            self._model.recall(sequence.cache, job.context[: job.settled])
            sequence.held = [*job.context[: sequence.cache.length]]

    def _keep(self, job: DraftJob) -> None:
        """Offer the text to others; its last token may be fed again, so it is left out."""
        settled = min(job.sequence.cache.length, job.settled - 1)
        self._model.keep(job.sequence.cache, job.context[:settled])

    def _reserve(self, job: DraftJob) -> bool:
        if self._model.reserve(job.sequence.cache, len(job.context) + job.max_tokens):
            return True
        self.finish(job.sequence)  # others may have better use for a part of a text
        return False

    def _extend(self, feeds: Sequence[tuple[DraftSequence, Sequence[int]]]) -> Tensor:
        logits = self._model.extend([(sequence.cache, tokens) for sequence, tokens in feeds])
        for sequence, tokens in feeds:
            sequence.held.extend(tokens)
        return logits

    def _draw(self, ready: Sequence[DraftJob], logits: Tensor) -> None:
        """Add the next token to each wish, or close it."""
        states = [job.sampling for job in ready]
        bitmask = _bitmask(ready, logits.shape[1])
        tokens = self._sampler.sample(logits, states, bitmask).token_ids
        acceptance_probs = self._chances(logits, states, bitmask)
        for job, token, acceptance_prob in zip(ready, tokens, acceptance_probs, strict=True):
            if job.constraint is not None and not job.constraint.accept_token(token):
                job.max_tokens = len(job.tokens)
                continue
            job.tokens.append(token)
            job.acceptance_probs.append(acceptance_prob)
            job.sampling.append(token)
            job.path_prob *= acceptance_prob
            if job.path_prob < self._min_survival or token in job.sampling.stop_token_ids:
                job.max_tokens = len(job.tokens)

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
        acceptance_probs: list[float] = (stats.top_scores[:, 0] - stats.logsumexp).exp().tolist()
        return acceptance_probs


def _rewind(job: DraftJob) -> None:
    """Forget what the cache holds beyond the context, whose last token is always fed again."""
    sequence, context = job.sequence, job.context
    shared, stop = sequence.agreed, min(len(sequence.held), len(context) - 1)
    while shared < stop and sequence.held[shared] == context[shared]:
        shared += 1
    shared = min(shared, stop)
    del sequence.held[shared:]
    sequence.cache.length = shared
    sequence.agreed = min(shared, job.settled)


def _bitmask(jobs: Sequence[DraftJob], vocab_size: int) -> Tensor | None:
    """Return what the constraints allow, [wishes, words] int32; None: there are none."""
    if all(job.constraint is None for job in jobs):
        return None
    bitmask = torch.full((len(jobs), -(-vocab_size // 32)), -1, dtype=torch.int32)
    for row, job in enumerate(jobs):
        if job.constraint is not None:
            job.constraint.fill_bitmask(bitmask, row)
    return bitmask
