"""Drafts sampled from a draft model, for many sequences in one pass per position.

Each sequence has a KV cache at the draft model. The cache holds a prefix of the text, and maybe
tokens of rejected drafts behind it. Before it drafts, a sequence drops what differs from the text
and reads what is missing, in chunks, so a long prompt delays no other sequence.

Each token is sampled from the draft model's logits exactly as the target will sample from its own:
with the same parameters, penalties, constraint, and noise of the same position. Law: if the draft
model is the target, every draft is accepted, at any temperature.
Source: Daliri, Musco and Suresh, arXiv:2408.07978 (drafter and target share their Gumbel noise).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.draft_model.protocol import DraftCache, DraftModel
from plait.kernels.backend import KernelBackend

RATE = 0.1  # weight of a new observation in the moving average


@dataclass(slots=True)
class DraftSequence:
    """One sequence at the draft model.

    The cache holds the first `num_text` tokens of the text, then `drafted`; what a superposed beam
    has fed behind them is not counted, so it is dropped.
    """

    sampling: SamplingState  # of the text so far
    cache: DraftCache
    num_text: int = 0
    drafted: list[int] = field(default_factory=list)


@dataclass(slots=True)
class DraftJob:
    """What to draft for one sequence in one step."""

    sequence: DraftSequence
    sampling: SamplingState  # over a copy of the text, the draft prefix, and what is sampled
    num_text: int  # tokens of the context that are text
    max_tokens: int
    constraint: Constraint | None  # the job's own, advanced like `sampling`
    tokens: list[int] = field(default_factory=list)
    acceptance_probs: list[float] = field(default_factory=list)
    path_prob: float = 1.0

    def extend(self, token: int) -> None:
        """Add one token to the context."""
        self.sampling.text.append(token)
        self.sampling.observe(token)

    @property
    def is_open(self) -> bool:
        """Whether another token is wanted."""
        return len(self.tokens) < self.max_tokens

    @property
    def context(self) -> Sequence[int]:
        """The text, what other drafters have drafted behind it, and what is sampled so far."""
        return self.sampling.text.token_ids

    @property
    def num_missing(self) -> int:
        """Tokens of the context that the cache lacks."""
        return len(self.context) - self.sequence.cache.length


class DraftModelRunner:
    """Samples drafts from a draft model."""

    def __init__(
        self,
        model: DraftModel,
        *,
        read_rows: int,
        min_path_prob: float,
        backend: KernelBackend,
    ) -> None:
        """Initialise.

        Args:
            model: the draft model.
            read_rows: most tokens of texts that one step reads.
            min_path_prob: a draft ends where its path probability falls below.
            backend: of the draft model's device.
        """
        self.seconds = 0.0  # of sampling one position, as a moving average
        self._model = model
        self._read_rows = read_rows
        self._min_path_prob = min_path_prob
        self._backend = backend
        self._sampler = OrdinarySampler(backend=backend)

    def start(self, request: DecodeRequest) -> DraftSequence:
        """Return the state of one new sequence; its text is read at the first draft."""
        sampling = SamplingState(
            replace(request.sampling, logprobs=None),
            request.text,
            request.stop_token_ids,
        )
        return DraftSequence(sampling, DraftCache(request.namespace))

    def new_job(
        self, sequence: DraftSequence, request: DraftRequest[Any], max_tokens: int
    ) -> DraftJob:
        """Return the job to draft behind the text and the draft prefix of a request.

        It holds copies, so it does not change when the text or the constraint advances.
        """
        text = sequence.sampling.text
        job = DraftJob(
            sequence,
            sequence.sampling.fork(text.with_noise(text.noise)),
            len(text),
            max_tokens,
            None if request.constraint is None else request.constraint.fork(),
        )
        for token in request.draft_prefix:
            job.extend(token)
        return job

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """Return a draft for each job.

        It is empty while the sequence still reads its text, or if the cache has no room for it.
        """
        ready, logits = self.read(jobs)
        while ready:
            begun = time.perf_counter()
            self._sample(ready, logits)
            kept = [i for i, job in enumerate(ready) if job.is_open]
            ready = [ready[i] for i in kept]
            if ready:
                feeds = [(job.sequence.cache, job.tokens[-1:]) for job in ready]
                logits = self._model.extend(feeds)
                for job in ready:
                    job.sequence.drafted.append(job.tokens[-1])
                self._observe_seconds(time.perf_counter() - begun)
        return [Draft(job.tokens, job.acceptance_probs) for job in jobs]

    def read(self, jobs: Sequence[DraftJob]) -> tuple[list[DraftJob], Tensor]:
        """Feed what the caches lack of their contexts, within the budget of a step.

        Returns the jobs whose whole context is cached now, and their logits [jobs, vocab].
        """
        left = self._read_rows
        feeds: list[tuple[DraftCache, Sequence[int]]] = []
        fed: list[DraftJob] = []
        ready: list[tuple[int, DraftJob]] = []  # with the index into the feeds
        for job in jobs:
            self._match_prefix(job)
            _drop_rejected(job)
        for job in sorted(jobs, key=lambda job: job.num_missing):
            count = min(job.num_missing, left)
            if count == 0 or not self._reserve(job):
                continue
            first = job.sequence.cache.length
            if count == job.num_missing:
                ready.append((len(feeds), job))
            feeds.append((job.sequence.cache, job.context[first : first + count]))
            fed.append(job)
            left -= count
        if not feeds:
            return [], torch.empty(0)
        logits = self._model.extend(feeds)
        for job in fed:
            _set_cached(job, job.sequence.cache.length)
        for job in jobs:
            self._share_prefix(job)
        return [job for _, job in ready], logits[[row for row, _ in ready]]

    def observe(self, sequence: DraftSequence, emitted: Sequence[int]) -> None:
        """Update the sampling state with new text."""
        for token in emitted:
            sequence.sampling.observe(token)

    def release(self, sequence: DraftSequence) -> None:
        """Release the cache of a sequence; the text is read again if it drafts later."""
        self._model.release(sequence.cache)
        sequence.num_text = 0
        sequence.drafted.clear()

    def _match_prefix(self, job: DraftJob) -> None:
        """Fill an empty cache with blocks of earlier texts that begin like this one."""
        cache = job.sequence.cache
        if not cache.blocks:
            self._model.match_prefix(cache, job.context[: job.num_text])
            job.sequence.num_text = cache.length

    def _share_prefix(self, job: DraftJob) -> None:
        """Offer the text to other sequences, without its last token, which may be fed again."""
        length = min(job.sequence.cache.length, job.num_text - 1)
        self._model.share_prefix(job.sequence.cache, job.context[:length])

    def _reserve(self, job: DraftJob) -> bool:
        if self._model.reserve(job.sequence.cache, len(job.context) + job.max_tokens):
            return True
        self.release(job.sequence)  # others can make better use of the blocks of a partial text
        return False

    def _sample(self, ready: Sequence[DraftJob], logits: Tensor) -> None:
        """Sample the next token of each job, or close the job."""
        states = [job.sampling for job in ready]
        bitmask = _bitmask(ready, logits.shape[1])
        tokens = self._sampler.sample(logits, states, bitmask).token_ids
        probs = self._acceptance_probs(logits, states, bitmask)
        for job, token, prob in zip(ready, tokens, probs, strict=True):
            if job.constraint is not None and not job.constraint.accept_token(token):
                job.max_tokens = len(job.tokens)
                continue
            job.tokens.append(token)
            job.acceptance_probs.append(prob)
            job.extend(token)
            job.path_prob *= prob
            if job.path_prob < self._min_path_prob or token in job.sampling.stop_token_ids:
                job.max_tokens = len(job.tokens)

    def _observe_seconds(self, seconds: float) -> None:
        self.seconds += (RATE if self.seconds else 1.0) * (seconds - self.seconds)

    def _acceptance_probs(
        self, logits: Tensor, states: Sequence[SamplingState], bitmask: Tensor | None
    ) -> list[float]:
        """Return for each row the share of its sampled token in softmax(scores + noise).

        The target samples with the same noise. So what counts is how far the token leads once the
        noise is added, not its probability. Greedy rows have no noise.
        """
        scores = self._sampler.scores(logits, states, bitmask)
        noisy = [row for row, state in enumerate(states) if not state.greedy]
        if noisy:
            keys = torch.tensor([states[row].key for row in noisy], device=logits.device)
            scores[noisy] += self._backend.gumbel(keys, logits.shape[1])
        stats = self._backend.row_stats(scores, entropy=False)
        probs: list[float] = (stats.top_scores[:, 0] - stats.logsumexp).exp().tolist()
        return probs


def _drop_rejected(job: DraftJob) -> None:
    """Cut the cache to what it shares with the context, without the context's last token.

    That token is always fed again, for its logits.
    """
    sequence, context = job.sequence, job.context
    shared, drafted = sequence.num_text, sequence.drafted
    stop = min(sequence.num_text + len(drafted), len(context) - 1)
    while shared < stop and drafted[shared - sequence.num_text] == context[shared]:
        shared += 1
    _set_cached(job, min(shared, stop))


def _set_cached(job: DraftJob, length: int) -> None:
    """Note that the cache holds the first `length` tokens of the context."""
    sequence = job.sequence
    sequence.cache.length = length
    sequence.num_text = min(length, job.num_text)
    sequence.drafted = list(job.context[sequence.num_text : length])


def _bitmask(jobs: Sequence[DraftJob], vocab_size: int) -> Tensor | None:
    """Return the legal tokens, [jobs, words] int32; None: no job has a constraint."""
    if all(job.constraint is None for job in jobs):
        return None
    bitmask = torch.full((len(jobs), -(-vocab_size // 32)), -1, dtype=torch.int32)
    for row, job in enumerate(jobs):
        if job.constraint is not None:
            job.constraint.fill_bitmask(bitmask, row)
    return bitmask
