"""What the request's law draws at each hole, and how sure it is, for many canvases at once.

Law: the token of a position is a function of its row of logits, of the request's parameters, of the
text that is settled and of the noise keyed (seed, sequence index, position); not of other rows. Its
probability p is the one at temperature 1, after bans, bias, penalties and constraint, before any
truncation. Rows that have a temperature and nothing else are read in place; only others are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.text import Text
from plait.decoders.diffusion.protocols import TOP, Bools, Floats, Ints
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.kernels import noise
from plait.kernels.backend import KernelBackend

BEST = {"block_p": 1, "p2": 2, "top": TOP}  # best tokens of a row that a statistic is made of


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How one sequence draws, whatever the canvas."""

    params: SamplingParams
    key: tuple[int, int]  # the noise key without its position
    heat: float  # temperature, 0 when greedy
    is_plain: bool  # nothing but a temperature


@dataclass(frozen=True, slots=True)
class DrawJob:
    """Positions of one canvas whose rows are read."""

    law: DrawSettings
    positions: Ints  # [r]
    rows: Ints  # [r] of the logits
    needs: frozenset[str]  # names of step.STATISTICS
    states: Sequence[SamplingState] = ()  # [r], unless the law is plain: see hole_states
    bitmask: Tensor | None = None  # [1, words] int32: what a constraint allows at one position,
    masked: int = 0  # whose index this is

    @property
    def is_plain(self) -> bool:
        """Whether its rows can be read in place."""
        return self.law.is_plain and self.bitmask is None

    def only(self, kept: slice) -> DrawJob:
        """Return some of its positions, without the bitmask."""
        positions, rows = self.positions[kept], self.rows[kept]
        return DrawJob(self.law, positions, rows, self.needs, self.states[kept])

    def at(self, index: int, bitmask: Tensor) -> DrawJob:
        """Return one of its positions, with a bitmask [1, words] and without statistics."""
        kept = slice(index, index + 1)
        positions, rows = self.positions[kept], self.rows[kept]
        return DrawJob(self.law, positions, rows, frozenset(), self.states[kept], bitmask)

    def pieces(self) -> list[DrawJob]:
        """Cut the masked row out where the others can be read in place."""
        if self.bitmask is None or not self.law.is_plain:
            return [self]
        at = self.masked
        cut = [self.only(slice(at)), self.only(slice(at, at + 1)), self.only(slice(at + 1, None))]
        cut[1] = replace(cut[1], bitmask=self.bitmask)
        return [piece for piece in cut if len(piece.rows)]


@dataclass(frozen=True, slots=True)
class PositionDraws:
    """What a job's rows say; fields as in StepView, with every position read."""

    positions: Ints
    tokens: Ints
    p: Floats
    best_p: Floats | None = None  # of the best token, whichever was drawn
    p2: Floats | None = None
    entropy: Floats | None = None
    top: tuple[Ints, Floats] | None = None

    def only(self, kept: Bools | slice) -> PositionDraws:
        """Return some of its positions."""
        return PositionDraws(
            self.positions[kept],
            self.tokens[kept],
            self.p[kept],
            None if self.best_p is None else self.best_p[kept],
            None if self.p2 is None else self.p2[kept],
            None if self.entropy is None else self.entropy[kept],
            None if self.top is None else (self.top[0][kept], self.top[1][kept]),
        )


@dataclass(frozen=True, slots=True)
class PositionBias:
    """What a scorer adds; entry i adds deltas[i] to one token at one position."""

    positions: Ints  # [k]
    tokens: Ints  # [k]
    deltas: Floats  # [k]


def draw_settings(state: SamplingState) -> DrawSettings:
    """Return how a sequence draws."""
    seed, sequence, _ = noise.key(state.text.noise.seed, state.text.noise.stream, 0)
    plain = not (state.edits or state.truncates or state.counts is not None)
    heat = 0.0 if state.greedy else state.params.temperature
    return DrawSettings(state.params, (seed, sequence), heat, plain)


def position_states(
    base: SamplingState, text: Sequence[int], first: int, positions: Ints, settled: Sequence[int]
) -> list[SamplingState]:
    """Return what sampling knows at each of these positions.

    Args:
        base: of the sequence; its counts are those of the text before the canvas.
        text: the ids from position 0 on, -1 at holes, which match no bad word.
        first: position of the answer's first token.
        positions: where a token is to be drawn.
        settled: tokens of the answer that stand in the canvas.
    """
    counts = base.counts
    if counts is not None:
        counts = counts.copy()
        for token in settled:
            counts.add(token)
    made = []
    for position in positions.tolist():
        state = copy(base)
        state.counts = counts
        state.params = replace(base.params, logprobs=None)
        state.text = Text(text[:first], base.text.noise, text[first:position])
        made.append(state)
    return made


def draw(logits: Tensor, jobs: Sequence[DrawJob], *, backend: KernelBackend) -> list[PositionDraws]:
    """Draw every row of every job. Cost: a handful of calls for all jobs that are alike.

    Args:
        logits: [rows, vocab] float32; not modified.
        jobs: what to read.
        backend: of the device that the logits are on.
    """
    pieces = [job.pieces() for job in jobs]
    if any(len(cut) > 1 for cut in pieces):
        each = iter(draw(logits, [piece for cut in pieces for piece in cut], backend=backend))
        return [_joined([next(each) for _ in cut]) for cut in pieces]
    made: dict[int, PositionDraws] = {}
    for members in _alike(jobs):
        group = [jobs[i] for i in members]
        if group[0].is_plain:
            drawn = _draw_plain(logits, group, backend)
        elif group[0].law.is_plain:
            drawn = _draw_masked(logits, group, backend)
        else:
            drawn = _draw_edited(logits, group, backend)
        made |= dict(zip(members, _split(drawn, group), strict=True))
    return [made[i] for i in range(len(jobs))]


def with_additions(
    logits: Tensor, jobs: Sequence[tuple[DrawJob, PositionBias]]
) -> tuple[Tensor, list[DrawJob]]:
    """Return copies of the jobs' rows with the additions, and jobs that read them."""
    rows = np.concatenate([job.rows for job, _ in jobs])
    scores = logits[torch.from_numpy(rows).to(logits.device)]
    first, again, at = 0, [], []
    for job, added in jobs:
        at.append(first + np.searchsorted(job.positions, added.positions))
        again.append(replace(job, rows=np.arange(first, first + len(job.rows))))
        first += len(job.rows)
    where = [np.concatenate(at), np.concatenate([added.tokens for _, added in jobs])]
    deltas = torch.from_numpy(np.concatenate([added.deltas for _, added in jobs]))
    index = tuple(torch.from_numpy(each).to(logits.device) for each in where)
    scores.index_put_(index, deltas.to(scores), accumulate=True)
    return scores, again


def draw_legal(logits: Tensor, jobs: Sequence[DrawJob], *, backend: KernelBackend) -> PositionDraws:
    """Draw jobs of one row each, from what their bitmasks leave of it.

    logits: as in `draw`. jobs: either all laws are plain, or none is (see Job.at).
    """
    if jobs[0].law.is_plain:
        return _draw_masked(logits, jobs, backend)
    return _draw_edited(logits, jobs, backend)


def token_probs(logits: Tensor, rows: Ints, tokens: Ints, *, backend: KernelBackend) -> Floats:
    """Return the probability that the model's own law gives to one token of each row."""
    index = torch.from_numpy(rows).to(logits.device)
    given = torch.from_numpy(tokens).to(logits.device)
    return _floats(backend.row_logprobs(logits, given, 0, rows=index).chosen.exp())


def _alike(jobs: Sequence[DrawJob]) -> list[list[int]]:
    """Group jobs whose rows can be computed together."""
    groups: dict[tuple[bool, bool, frozenset[str]], list[int]] = {}
    for i, job in enumerate(jobs):
        key = (job.law.is_plain, job.bitmask is not None, job.needs - {"shadow"})
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _draw_plain(logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend) -> PositionDraws:
    return _draw_rows(logits, np.concatenate([job.rows for job in jobs]), jobs, backend)


def _draw_masked(logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend) -> PositionDraws:
    """Draw single rows from copies that hold what is legal alone."""
    scores = logits[torch.from_numpy(np.concatenate([job.rows for job in jobs])).to(logits.device)]
    bitmask = torch.cat([job.bitmask for job in jobs if job.bitmask is not None])
    backend.apply_bitmask(scores, bitmask.to(logits.device))
    return _draw_rows(scores, np.arange(len(jobs)), jobs, backend)


def _draw_rows(
    scores: Tensor, rows: Ints, jobs: Sequence[DrawJob], backend: KernelBackend
) -> PositionDraws:
    """Draw the jobs' positions, one after the other, from these rows."""
    sizes = [len(job.rows) for job in jobs]
    index = torch.from_numpy(rows).to(scores.device)
    keys = np.empty((len(rows), 3), np.int64)
    keys[:, :2] = np.repeat([job.law.key for job in jobs], sizes, axis=0)
    keys[:, 2] = np.concatenate([job.positions for job in jobs])
    heat = np.repeat(np.array([job.law.heat for job in jobs], np.float32), sizes)
    tokens = backend.gumbel_argmax(
        scores,
        torch.from_numpy(keys).to(scores.device),
        temperatures=torch.from_numpy(heat).to(scores.device),
        rows=index,
    )
    return _statistics(scores, index, tokens, jobs, backend)


def _draw_edited(logits: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend) -> PositionDraws:
    """Draw from edited copies; the statistics are those of the copies, at temperature 1."""
    sampler = OrdinarySampler(backend=backend)
    rows = np.concatenate([job.rows for job in jobs])
    scores = logits[torch.from_numpy(rows).to(logits.device)]
    states = [state for job in jobs for state in job.states]
    bitmask = torch.cat([_bitmask(job) for job in jobs]) if jobs[0].bitmask is not None else None
    tokens = sampler.sample(scores, states, bitmask).token_ids
    cold = sampler.scores(scores, [_cold(state) for state in states], bitmask)
    dead = ~cold.isfinite().any(dim=1)  # rows whose bans the sampler had to drop
    cold[dead] = scores[dead]
    index = torch.arange(len(rows), device=logits.device)
    return _statistics(cold, index, torch.tensor(tokens, device=logits.device), jobs, backend)


def _bitmask(job: DrawJob) -> Tensor:
    """Return [r, words]: the job's bitmask at its row, all ones elsewhere."""
    assert job.bitmask is not None
    bitmask = torch.full((len(job.rows), job.bitmask.shape[1]), -1, dtype=torch.int32)
    bitmask[job.masked] = job.bitmask[0]
    return bitmask


def _cold(state: SamplingState) -> SamplingState:
    """Return the same state at temperature 1, without truncation."""
    twin = copy(state)
    twin.truncates = False
    twin.greedy = True  # its scores are not divided
    return twin


def _statistics(
    scores: Tensor, rows: Tensor, tokens: Tensor, jobs: Sequence[DrawJob], backend: KernelBackend
) -> PositionDraws:
    """Return what is asked about tokens[i], drawn from scores[rows[i]]."""
    needs = jobs[0].needs
    count = max((BEST[name] for name in needs if name in BEST), default=0)
    law = backend.row_logprobs(scores, tokens, min(count, scores.shape[1]), rows=rows)
    best_ids, best = law.top_ids.cpu().numpy(), _floats(law.top.exp())
    chosen = tokens.cpu().numpy()
    return PositionDraws(
        positions=np.concatenate([job.positions for job in jobs]),
        tokens=chosen,
        p=_floats(law.chosen.exp()),
        best_p=best[:, 0] if "block_p" in needs else None,
        p2=_runner_up(best_ids, best, chosen) if "p2" in needs else None,
        entropy=_floats(backend.row_stats(scores[rows]).entropy) if "entropy" in needs else None,
        top=(best_ids, best) if "top" in needs else None,
    )


def _runner_up(best_ids: Ints, best: Floats, chosen: Ints) -> Floats:
    """Return the probability of the best token that wasn't drawn."""
    second = best[:, 1] if best.shape[1] > 1 else np.zeros(len(best))
    return np.where(best_ids[:, 0] == chosen, second, best[:, 0])


def _floats(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def _joined(parts: Sequence[PositionDraws]) -> PositionDraws:
    """Put the pieces of a job together."""
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


def _split(drawn: PositionDraws, jobs: Sequence[DrawJob]) -> list[PositionDraws]:
    """Cut the rows of several jobs apart."""
    stops = np.cumsum([len(job.rows) for job in jobs]).tolist()
    parts = []
    for start, stop in zip([0, *stops], stops, strict=False):
        parts.append(drawn.only(slice(start, stop)))
    return parts
