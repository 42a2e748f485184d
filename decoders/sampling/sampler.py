"""The ordinary sampler: one exact draw from each row's own distribution.

Law: the draw is argmax over tokens of score / temperature + Gumbel noise, which is a draw from
softmax(score / temperature); the noise is a function of (seed, stream, position, token), so the
same state and logits give the same token in any batch. Exact up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from plait.decoders.contract.decoder import TokenLogprobs
from plait.decoders.contract.registry import Options
from plait.decoders.sampling import edits
from plait.decoders.sampling.estimators import Weighed
from plait.decoders.sampling.logprobs import logprobs_of, with_named
from plait.decoders.sampling.order import draw_order
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.state import SamplingState
from plait.kernels.backend import KernelBackend
from plait.kernels.dispatch import cpu_backend

NO_TRUNCATION = SamplingParams()


@dataclass(frozen=True, slots=True)
class Draws:
    """One draw per row."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]  # None where the request asks for none
    # log of the probability that the request's distribution before the constraint (bans, bias,
    # penalties, temperature, which is 1 when greedy, and truncation are in it) gives to what the
    # constraint and the caller allow, each token times its factor (SamplingState.log_factors); 0.0
    # for rows without any of these; -inf where truncation leaves nothing of it, see SamplingParams.
    # Summed over a text it is its importance weight.
    log_mass: list[float]


class BanLevel(IntEnum):
    """Whose bans a draw respects. Dropped one by one for a row that they leave without a token."""

    NONE = 0
    CONSTRAINT = 1
    CALLER = 2  # and what the caller has banned
    ALL = 3  # and the request's own allowed_token_ids, bad_words and min_tokens


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Rows to draw from; entry i of each field belongs to the same row."""

    index: list[int]  # rows of the logits
    states: list[SamplingState]
    bitmask: Tensor | None  # [rows, words] int32, on the CPU, where constraints fill it
    banned: list[Collection[int]]

    def select(self, entries: list[int]) -> SamplingBatch:
        """Return these entries of it."""
        if len(entries) == len(self.index):  # callers name none twice
            return self
        if not entries:
            return NO_ROWS
        return SamplingBatch(
            [self.index[i] for i in entries],
            [self.states[i] for i in entries],
            self.bitmask[entries] if self.bitmask is not None else None,
            [self.banned[i] for i in entries],
        )

    def temperatures(self, greedy: float, device: torch.device) -> Tensor:
        """Return the temperatures [rows], `greedy` where a row is."""
        found = [greedy if state.greedy else state.params.temperature for state in self.states]
        return torch.tensor(found, device=device)

    def bitmask_on(self, device: torch.device) -> Tensor | None:
        """Return the bitmask where the logits are."""
        return None if self.bitmask is None else self.bitmask.to(device)

    def keys(self, device: torch.device) -> Tensor:
        """Return the keys [rows, 3] of the rows' noise."""
        return torch.tensor([s.key for s in self.states], dtype=torch.int64, device=device)


NO_ROWS = SamplingBatch([], [], None, [])


@dataclass(frozen=True, slots=True)
class OrdinarySampler:
    """Draws every row by its own request's parameters; see SamplingParams for their order."""

    is_weighing: ClassVar[bool] = False
    backend: KernelBackend = field(default_factory=cpu_backend)  # of the logits' device

    def sample(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Draws:
        """Draw one token per row. The states are not changed; append the token once it is emitted.

        A row without a legal token drops the request's own bans, then the caller's, then the
        constraint (a sound one never gets there, and its accept_token refuses what is drawn).
        Truncation is dropped before them, where it leaves nothing legal: see SamplingParams.

        Args:
            logits: [b, vocab] float32, rows contiguous; not modified.
            states: one per row; a state may stand in several rows.
            bitmask: [b, words] int32, bit t % 32 of word t // 32 says that token t is legal; a row
                of all ones is unconstrained, in other rows tokens without a bit are illegal.
            banned: per row, token ids that must not be drawn; a constraint as well, in addition.
        """
        if bitmask is None and banned is None and all(state.draws_plainly for state in states):
            temperatures = [0.0 if s.greedy else s.params.temperature for s in states]
            drawn = self.backend.draw_rows(logits, [s.key for s in states], temperatures)
            return Draws(drawn, [None] * len(states), [0.0] * len(states))
        token_ids = [0] * len(states)
        log_mass = [0.0] * len(states)
        plain, constrained, special = _by_needs(_rows(logits, states, bitmask, banned))
        if plain.index:
            self._draw_plain(logits, plain, token_ids)
        if constrained.index:
            dead = self._draw_constrained(logits, constrained, token_ids, log_mass)
            self._draw_special(logits, dead, BanLevel.NONE, token_ids, log_mass)
        for ban_level in reversed(BanLevel):
            special = self._draw_special(logits, special, ban_level, token_ids, log_mass)
        return Draws(token_ids, self.report(logits, states, token_ids), log_mass)

    def scores(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Tensor:
        """Return the scores [b, vocab] to draw from: a row's distribution is their softmax.

        Arguments as in `sample`; a greedy row's distribution is all on its best token. No bans are
        dropped.
        """
        rows = _rows(logits, states, bitmask, banned)
        return self._scores(logits, rows, BanLevel.ALL)[0]

    def weigh(
        self,
        logits: Tensor,
        state: SamplingState,
        bitmask: Tensor | None,
        passes: Callable[[int], bool],
    ) -> tuple[Weighed, float] | None:
        """Return None: what passes is drawn by `order`, with the mass of the bitmask."""
        return None

    def masked(
        self, logits: Tensor, state: SamplingState, bitmask: Tensor | None
    ) -> tuple[Tensor, float]:
        """Return the scores [vocab] that a row [1, vocab] is drawn from, and its log mass."""
        scores, mass = self._scores(logits, _rows(logits, [state], bitmask, None), BanLevel.ALL)
        return scores[0], mass[0]

    def order(
        self, logits: Tensor, state: SamplingState, bitmask: Tensor | None = None
    ) -> Iterator[int]:
        """Yield the legal tokens of a row [1, vocab], each as it would be drawn next.

        Law: the first is what `sample` draws, and each is what it draws with those before banned.
        Where nothing is left, the request's own bans are dropped. Cost: that of a draw; then of a
        sort of the tokens that are read.
        """
        rows, seen = _rows(logits, [state], bitmask, None), set[int]()
        for ban_level in (BanLevel.ALL, BanLevel.CALLER):
            scores = self._scores(logits, rows, ban_level)[0][0]
            noise = (
                None if state.greedy else self.backend.gumbel(rows.keys(logits.device), len(scores))
            )
            for token_id in draw_order(scores, noise):
                if token_id not in seen:
                    seen.add(token_id)
                    yield token_id

    def base_logprobs(
        self, logits: Tensor, state: SamplingState, token_ids: Sequence[int]
    ) -> list[float]:
        """Return the log-probabilities of tokens under the law before the constraint.

        Args:
            logits: [1, vocab].
            state: its factors are left out; greedy counts as a temperature of 1.
            token_ids: any; those that the law gives no probability have -inf.
        """
        scores = self._tempered(logits, _rows(logits, [state], None, None), BanLevel.ALL)
        if state.truncates:
            _truncate(scores, [state], self.backend)
        exact = scores[0].double()
        found: list[float] = (exact[list(token_ids)] - exact.logsumexp(0)).tolist()
        return found

    def report(
        self, logits: Tensor, states: Sequence[SamplingState], token_ids: Sequence[int]
    ) -> list[TokenLogprobs | None]:
        """Return what the rows' requests ask to know of these tokens, off the untouched logits."""
        entries: list[TokenLogprobs | None] = [None] * len(states)
        asked = {
            row: state.params.logprobs
            for row, state in enumerate(states)
            if state.params.logprobs is not None
        }
        rows = list(asked)
        chosen = [token_ids[row] for row in rows]
        found = logprobs_of(logits, rows, chosen, list(asked.values()), backend=self.backend)
        for row, entry in zip(rows, found, strict=True):
            named = states[row].params.logprob_token_ids
            entries[row] = with_named(logits[row], entry, named) if named else entry
        return entries

    def _draw_plain(self, logits: Tensor, rows: SamplingBatch, token_ids: list[int]) -> None:
        """Draw rows that have a temperature and maybe a constraint, straight from the logits."""
        tokens = self.backend.gumbel_argmax(
            logits,
            rows.keys(logits.device),
            temperatures=rows.temperatures(0.0, logits.device),
            rows=_index(rows, logits),
            bitmask=rows.bitmask_on(logits.device),
        )
        for row, token_id in zip(rows.index, tokens.tolist(), strict=True):
            token_ids[row] = token_id

    def _draw_constrained(
        self, logits: Tensor, rows: SamplingBatch, token_ids: list[int], log_mass: list[float]
    ) -> SamplingBatch:
        """Draw rows that have a constraint as well; return those without a legal token."""
        bitmask = rows.bitmask_on(logits.device)
        assert bitmask is not None
        temperatures = rows.temperatures(1.0, logits.device)
        index = _index(rows, logits)
        mass = self.backend.legal_mass(logits, bitmask, temperatures, rows=index).tolist()
        for row, value in zip(rows.index, mass, strict=True):
            log_mass[row] = value
        self._draw_plain(logits, rows, token_ids)
        return rows.select([i for i, value in enumerate(mass) if value == -inf])

    def _draw_special(
        self,
        logits: Tensor,
        rows: SamplingBatch,
        ban_level: BanLevel,
        token_ids: list[int],
        log_mass: list[float],
    ) -> SamplingBatch:
        """Draw these rows from edited copies; return those that had no legal token."""
        if not rows.index:
            return rows
        scores, mass = self._scores(logits, rows, ban_level)
        # the temperature is in the scores already
        temperatures = [0.0 if state.greedy else 1.0 for state in rows.states]
        tokens = self.backend.gumbel_argmax(
            scores,
            rows.keys(logits.device),
            temperatures=torch.tensor(temperatures, device=logits.device),
        )
        for row, token_id, value in zip(rows.index, tokens.tolist(), mass, strict=True):
            token_ids[row], log_mass[row] = token_id, value
        if ban_level is BanLevel.NONE:
            return rows.select([])
        dead = scores.gather(1, tokens[:, None])[:, 0] == -torch.inf
        return rows.select([i for i, is_dead in enumerate(dead.tolist()) if is_dead])

    def _scores(
        self, logits: Tensor, rows: SamplingBatch, ban_level: BanLevel
    ) -> tuple[Tensor, Sequence[float]]:
        """Return the scores to draw from, in the order of SamplingParams, and the log masses."""
        scores = self._tempered(logits, rows, ban_level)
        allowed = _allowed(rows, scores, ban_level)
        truncates = any(state.truncates for state in rows.states)
        whole = scores.clone() if truncates and allowed is not None else scores
        if truncates:
            _truncate(scores, rows.states, self.backend)
        mass = [0.0] * len(rows.states)
        if allowed is not None:
            cold = torch.ones(len(rows.states), device=scores.device)
            mass = self.backend.legal_mass(scores, allowed, cold).tolist()
            self.backend.apply_bitmask(scores, allowed)
            outside = [i for i, x in enumerate(mass) if x == -inf and rows.states[i].truncates]
            if outside:  # truncation leaves nothing legal: the best of what is legal
                best = whole[outside]
                self.backend.apply_bitmask(best, allowed[outside])
                _truncate(best, [rows.states[i] for i in outside], self.backend)
                scores[outside] = best
        for i, state in enumerate(rows.states if ban_level >= BanLevel.CALLER else ()):
            if state.log_factors:
                mass[i] += edits.scale(scores[i], state.log_factors)
        return scores, mass

    def _tempered(self, logits: Tensor, rows: SamplingBatch, ban_level: BanLevel) -> Tensor:
        """Return the scores [rows, vocab] before truncation and constraint."""
        scores = logits[_index(rows, logits)]
        for row, state in zip(scores, rows.states, strict=True):
            if state.edits:
                _edit(row, state, ban_level)
        scores /= rows.temperatures(1.0, logits.device)[:, None]
        return scores


def _by_needs(rows: SamplingBatch) -> tuple[SamplingBatch, SamplingBatch, SamplingBatch]:
    """Return the rows that have just a temperature, those with a constraint as well, and others."""
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    flags = [False] * len(rows.index)
    if rows.bitmask is not None:
        flags = _is_constrained(rows.bitmask).tolist()
    for i, (state, banned) in enumerate(zip(rows.states, rows.banned, strict=True)):
        is_other = banned or state.edits or state.truncates or state.log_factors
        found[2 if is_other else flags[i]].append(i)
    plain, constrained, others = (rows.select(entries) for entries in found)
    return replace(plain, bitmask=None), constrained, others


def _rows(
    logits: Tensor,
    states: Sequence[SamplingState],
    bitmask: Tensor | None,
    banned: Sequence[Collection[int]] | None,
) -> SamplingBatch:
    """Return all rows, with a bit for every token of the logits in the bitmask."""
    if bitmask is not None:
        missing = -(-logits.shape[1] // 32) - bitmask.shape[1]
        if missing > 0:
            tail = torch.where(_is_constrained(bitmask), 0, -1).to(torch.int32)
            bitmask = torch.cat([bitmask, tail[:, None].expand(-1, missing)], dim=1)
    bans: list[Collection[int]] = list(banned) if banned is not None else [()] * len(states)
    return SamplingBatch(list(range(len(states))), list(states), bitmask, bans)


def _is_constrained(bitmask: Tensor) -> Tensor:
    return (bitmask != -1).any(dim=1)


def _allowed(rows: SamplingBatch, scores: Tensor, ban_level: BanLevel) -> Tensor | None:
    """Return a bitmask [rows, words] of what constraint and caller allow; None: everything."""
    bitmask = rows.bitmask_on(scores.device) if ban_level >= BanLevel.CONSTRAINT else None
    if ban_level < BanLevel.CALLER or not any(rows.banned):
        return bitmask
    if bitmask is None:
        words = -(-scores.shape[1] // 32)
        bitmask = torch.full((len(scores), words), -1, dtype=torch.int32, device=scores.device)
    elif bitmask is rows.bitmask:
        bitmask = bitmask.clone()
    for row, banned in enumerate(rows.banned):
        for token_id in banned:
            bitmask[row, token_id // 32] &= ~_bit(token_id)
    return bitmask


def _bit(token_id: int) -> int:
    """Return the word in which only the token's bit is set, as int32."""
    shift = token_id % 32
    return 1 << shift if shift < 31 else -(1 << 31)


def _edit(row: Tensor, state: SamplingState, ban_level: BanLevel) -> None:
    """Apply the request's bans, bias and penalties to one row of scores."""
    params = state.params
    if ban_level is BanLevel.ALL:
        if params.allowed_token_ids:
            edits.keep_only(row, params.allowed_token_ids)
        if illegal := state.bans():
            edits.ban(row, illegal)
    if params.logit_bias:
        edits.add_bias(row, params.logit_bias)
    if state.counts:
        edits.penalise(row, state.counts, params)


def _truncate(scores: Tensor, states: Sequence[SamplingState], backend: KernelBackend) -> None:
    params = [state.params if state.truncates else NO_TRUNCATION for state in states]
    backend.apply_top_k_top_p(
        scores,
        torch.tensor([p.top_k for p in params], dtype=torch.int64, device=scores.device),
        torch.tensor([p.top_p for p in params], dtype=torch.float64, device=scores.device),
        torch.tensor([p.min_p for p in params], dtype=torch.float64, device=scores.device),
    )


def _index(rows: SamplingBatch, logits: Tensor) -> Tensor:
    return torch.tensor(rows.index, dtype=torch.int64, device=logits.device)


def make_ordinary(options: Options, *, backend: KernelBackend) -> OrdinarySampler:
    """Build the method `ordinary` of the registry; it has no options."""
    return OrdinarySampler(backend=backend)
