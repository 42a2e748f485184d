"""Draws a token at each masked position and computes its statistics, for many canvases at once.

Law: the token of a position is a function of its row of logits, of the request's parameters, of the
unmasked text and of the noise keyed (seed, stream, position); other rows have no influence. Its
probability p is the one at temperature 1, after bans, bias, penalties and constraint, before any
truncation. Rows of requests with a temperature and nothing else are read in place; others are
copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.text import Text
from plait.decoders.diffusion.protocols import TOP, Bools, Floats, Ints, LogitBias
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.kernels import noise
from plait.kernels.backend import KernelBackend

NUM_BEST = {"block_p": 1, "p2": 2, "top": TOP}  # best tokens of a row that a statistic reads


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How one sequence draws, on every canvas."""

    params: SamplingParams
    noise_key: tuple[int, int]  # (seed, stream)
    temperature: float  # 0 when greedy
    is_plain: bool  # no parameter but a temperature changes the distribution


@dataclass(frozen=True, slots=True)
class DrawJob:
    """The r positions of one canvas whose logits are read."""

    settings: DrawSettings
    positions: Ints  # [r]
    rows: Ints  # [r] of the logits
    needs: frozenset[str]  # names of protocols.STATISTICS
    states: Sequence[SamplingState] = ()  # [r], empty with plain settings: see position_states
    bitmask: Tensor | None = None  # [1, words] int32 on the CPU: legal tokens of one position,
    bitmask_index: int = 0  # which is positions[bitmask_index]

    @property
    def is_plain(self) -> bool:
        """Whether its rows can be read in place."""
        return self.settings.is_plain and self.bitmask is None

    def only(self, kept: slice) -> DrawJob:
        """Return the job of some of its positions, without the bitmask."""
        positions, rows = self.positions[kept], self.rows[kept]
        return DrawJob(self.settings, positions, rows, self.needs, self.states[kept])

    def at(self, index: int, bitmask: Tensor) -> DrawJob:
        """Return the job of one position, with a bitmask [1, words] and without statistics."""
        return replace(self.only(slice(index, index + 1)), needs=frozenset(), bitmask=bitmask)

    def split(self) -> list[DrawJob]:
        """Return jobs that separate the row with a bitmask from rows that are read in place."""
        if self.bitmask is None or not self.settings.is_plain:
            return [self]
        at = self.bitmask_index
        jobs = [self.only(slice(at)), self.only(slice(at, at + 1)), self.only(slice(at + 1, None))]
        jobs[1] = replace(jobs[1], bitmask=self.bitmask)
        return [job for job in jobs if len(job.rows)]


@dataclass(frozen=True, slots=True)
class PositionDraws:
    """What was drawn at a job's positions; fields as in StepView, for every position read."""

    positions: Ints
    tokens: Ints
    p: Floats
    best_p: Floats | None = None  # of the best token, whichever was drawn
    p2: Floats | None = None
    entropy: Floats | None = None
    top: tuple[Ints, Floats] | None = None

    def only(self, kept: Bools | slice) -> PositionDraws:
        """Return the draws at some of its positions."""
        return PositionDraws(
            self.positions[kept],
            self.tokens[kept],
            self.p[kept],
            None if self.best_p is None else self.best_p[kept],
            None if self.p2 is None else self.p2[kept],
            None if self.entropy is None else self.entropy[kept],
            None if self.top is None else (self.top[0][kept], self.top[1][kept]),
        )


def draw_settings(state: SamplingState) -> DrawSettings:
    """Return how a sequence draws."""
    seed, stream, _ = noise.key(state.text.noise.seed, state.text.noise.stream, 0)
    plain = not (state.edits or state.truncates or state.counts is not None)
    temperature = 0.0 if state.greedy else state.params.temperature
    return DrawSettings(state.params, (seed, stream), temperature, plain)


def position_states(
    base: SamplingState, text: Sequence[int], first: int, positions: Ints, unmasked: Sequence[int]
) -> list[SamplingState]:
    """Return the sampling state of each position.

    Args:
        base: of the sequence; its counts are those of the committed text.
        text: token ids from position 0 on, -1 where masked, which matches no bad word.
        first: position of the first output token.
        positions: where a token will be drawn.
        unmasked: output tokens of the canvas that are not in the counts.
    """
    counts = base.counts
    if counts is not None:
        counts = counts.copy()
        for token in unmasked:
            counts.add(token)
    states = []
    for position in positions.tolist():
        state = copy(base)
        state.counts = counts
        state.params = replace(base.params, logprobs=None)
        state.text = Text(text[:first], base.text.noise, text[first:position])
        states.append(state)
    return states


def draw(logits: Tensor, jobs: Sequence[DrawJob], *, backend: KernelBackend) -> list[PositionDraws]:
    """Draw a token in every row of every job. Cost: a few kernel calls for all jobs of one kind.

    Args:
        logits: [rows, vocab] float32; not modified.
        jobs: what to read.
        backend: of the device that the logits are on.
    """
    pieces = [job.split() for job in jobs]
    if any(len(split) > 1 for split in pieces):
        each = iter(draw(logits, [piece for split in pieces for piece in split], backend=backend))
        return [_joined([next(each) for _ in split]) for split in pieces]
    made: dict[int, PositionDraws] = {}
    for members in _by_kind(jobs):
        group = [jobs[i] for i in members]
        if group[0].is_plain:
            draws = _draw_plain(logits, group, backend)
        elif group[0].settings.is_plain:
            draws = _draw_with_bitmask(logits, group, backend)
        else:
            draws = _draw_edited(logits, group, backend)
        made |= dict(zip(members, _split(draws, group), strict=True))
    return [made[i] for i in range(len(jobs))]


def biased_logits(
    logits: Tensor, jobs: Sequence[DrawJob], positions: Sequence[Ints], biases: Sequence[LogitBias]
) -> tuple[Tensor, list[DrawJob]]:
    """Return a copy of the jobs' rows with biases added, and jobs that read the copy.

    Args:
        logits: [rows, vocab] float32; not modified.
        jobs: whose rows are copied.
        positions: those that each bias's rows count.
        biases: one for each job.
    """
    rows = np.concatenate([job.rows for job in jobs])
    scores = logits[torch.from_numpy(rows).to(logits.device)]
    first, moved, at = 0, [], []
    for job, own, bias in zip(jobs, positions, biases, strict=True):
        at.append(first + np.searchsorted(job.positions, own[bias.rows]))
        moved.append(replace(job, rows=np.arange(first, first + len(job.rows))))
        first += len(job.rows)
    where = [np.concatenate(at), np.concatenate([bias.tokens for bias in biases])]
    deltas = torch.from_numpy(np.concatenate([bias.deltas for bias in biases]))
    index = tuple(torch.from_numpy(each).to(logits.device) for each in where)
    scores.index_put_(index, deltas.to(scores), accumulate=True)
    return scores, moved


def draw_legal(logits: Tensor, jobs: Sequence[DrawJob], *, backend: KernelBackend) -> PositionDraws:
    """Draw one legal token for each of these jobs, which have one row and a bitmask each.

    jobs: either all settings are plain, or none are (see DrawJob.at).
    """
    if jobs[0].settings.is_plain:
        return _draw_with_bitmask(logits, jobs, backend)
    return _draw_edited(logits, jobs, backend)


def row_scores(
    logits: Tensor, job: DrawJob, temperature: float | None, *, backend: KernelBackend
) -> Floats:
    """Return the scores [r, vocab] that a job's tokens are drawn from: softmax gives their law.

    temperature: of the request, with all of its other parameters; 0 and None: 1, untruncated.
    """
    scores = logits[torch.from_numpy(job.rows).to(logits.device)]
    if job.settings.is_plain:
        return _floats(scores / (temperature or 1.0))
    states = job.states if temperature else [_untempered(state) for state in job.states]
    edited = OrdinarySampler(backend).scores(scores, states)
    empty = ~edited.isfinite().any(dim=1)  # as in _draw_edited
    edited[empty] = scores[empty]
    return _floats(edited)


def token_probs(logits: Tensor, rows: Ints, tokens: Ints, *, backend: KernelBackend) -> Floats:
    """Return the model's own probability [n] of tokens[i] in logits[rows[i]]."""
    index = torch.from_numpy(rows).to(logits.device)
    given = torch.from_numpy(tokens).to(logits.device)
    return _floats(backend.row_logprobs(logits, given, 0, rows=index).chosen.exp())


def _by_kind(jobs: Sequence[DrawJob]) -> list[list[int]]:
    """Group the jobs whose rows can be computed together."""
    groups: dict[tuple[bool, bool, frozenset[str]], list[int]] = {}
    for i, job in enumerate(jobs):
        key = (job.settings.is_plain, job.bitmask is not None, job.needs - {"leave_one_out"})
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _draw_plain(logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend) -> PositionDraws:
    return _draw_rows(logits, np.concatenate([job.rows for job in jobs]), jobs, backend)


def _draw_with_bitmask(
    logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend
) -> PositionDraws:
    """Draw from copies of single rows in which illegal tokens are -inf."""
    scores = logits[torch.from_numpy(np.concatenate([job.rows for job in jobs])).to(logits.device)]
    bitmask = torch.cat([job.bitmask for job in jobs if job.bitmask is not None])
    backend.apply_bitmask(scores, bitmask.to(logits.device))
    return _draw_rows(scores, np.arange(len(jobs)), jobs, backend)


def _draw_rows(
    scores: Tensor, rows: Ints, jobs: Sequence[DrawJob], backend: KernelBackend
) -> PositionDraws:
    """Draw at the jobs' positions, in order, from these rows."""
    sizes = [len(job.rows) for job in jobs]
    index = torch.from_numpy(rows).to(scores.device)
    keys = np.empty((len(rows), 3), np.int64)
    keys[:, :2] = np.repeat([job.settings.noise_key for job in jobs], sizes, axis=0)
    keys[:, 2] = np.concatenate([job.positions for job in jobs])
    temperatures = np.array([job.settings.temperature for job in jobs], np.float32)
    tokens = backend.gumbel_argmax(
        scores,
        torch.from_numpy(keys).to(scores.device),
        temperatures=torch.from_numpy(np.repeat(temperatures, sizes)).to(scores.device),
        rows=index,
    )
    return _statistics(scores, index, tokens, jobs, backend)


def _draw_edited(logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend) -> PositionDraws:
    """Draw from edited copies; the statistics are those of the copies, at temperature 1."""
    sampler = OrdinarySampler(backend)
    rows = np.concatenate([job.rows for job in jobs])
    scores = logits[torch.from_numpy(rows).to(logits.device)]
    states = [state for job in jobs for state in job.states]
    bitmask = None
    if jobs[0].bitmask is not None:
        bitmask = torch.cat([_full_bitmask(job) for job in jobs]).to(logits.device)
    tokens = sampler.sample(scores, states, bitmask).token_ids
    edited = sampler.scores(scores, [_untempered(state) for state in states], bitmask)
    empty = ~edited.isfinite().any(dim=1)  # rows whose bans the sampler had to drop
    edited[empty] = scores[empty]
    index = torch.arange(len(rows), device=logits.device)
    return _statistics(edited, index, torch.tensor(tokens, device=logits.device), jobs, backend)


def _full_bitmask(job: DrawJob) -> Tensor:
    """Return [r, words]: the job's bitmask at its position, all ones elsewhere."""
    assert job.bitmask is not None
    bitmask = torch.full((len(job.rows), job.bitmask.shape[1]), -1, dtype=torch.int32)
    bitmask[job.bitmask_index] = job.bitmask[0]
    return bitmask


def _untempered(state: SamplingState) -> SamplingState:
    """Return the same state at temperature 1, without truncation."""
    twin = copy(state)
    twin.truncates = False
    twin.greedy = True  # its scores are not divided
    return twin


def _statistics(
    scores: Tensor, rows: Tensor, tokens: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend
) -> PositionDraws:
    """Return the statistics that the jobs need of tokens[i], drawn from scores[rows[i]]."""
    needs = jobs[0].needs
    count = max((NUM_BEST[name] for name in needs if name in NUM_BEST), default=0)
    found = backend.row_logprobs(scores, tokens, min(count, scores.shape[1]), rows=rows)
    best_ids, best = found.top_ids.cpu().numpy(), _floats(found.top.exp())
    chosen = tokens.cpu().numpy()
    entropy = None
    if "entropy" in needs:
        entropy = _floats(backend.row_stats(scores[rows]).entropy)
    return PositionDraws(
        positions=np.concatenate([job.positions for job in jobs]),
        tokens=chosen,
        p=_floats(found.chosen.exp()),
        best_p=best[:, 0] if "block_p" in needs else None,
        p2=_runner_up(best_ids, best, chosen) if "p2" in needs else None,
        entropy=entropy,
        top=(best_ids, best) if "top" in needs else None,
    )


def _runner_up(best_ids: Ints, best: Floats, chosen: Ints) -> Floats:
    """Return the probability of the best token that wasn't drawn."""
    second = best[:, 1] if best.shape[1] > 1 else np.zeros(len(best))
    return np.where(best_ids[:, 0] == chosen, second, best[:, 0])


def _floats(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def _joined(parts: Sequence[PositionDraws]) -> PositionDraws:
    """Concatenate the draws of a job that was split."""
    if len(parts) == 1:
        return parts[0]
    tops = [part.top for part in parts if part.top is not None]
    return PositionDraws(
        positions=np.concatenate([part.positions for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        p=np.concatenate([part.p for part in parts]),
        best_p=_concatenated([part.best_p for part in parts]),
        p2=_concatenated([part.p2 for part in parts]),
        entropy=_concatenated([part.entropy for part in parts]),
        top=(np.concatenate([ids for ids, _ in tops]), np.concatenate([p for _, p in tops]))
        if tops
        else None,
    )


def _concatenated(parts: Sequence[Floats | None]) -> Floats | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def _split(draws: PositionDraws, jobs: Sequence[DrawJob]) -> list[PositionDraws]:
    """Return the draws of each job."""
    stops = np.cumsum([len(job.rows) for job in jobs]).tolist()
    return [draws.only(slice(start, stop)) for start, stop in zip([0, *stops], stops, strict=False)]
