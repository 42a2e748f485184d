"""awrs: adaptive weighted rejection sampling, for constraints that check tokens one by one.

Where a bitmask allows more than is legal, or the budget takes tokens back, the ordinary sampler
draws an exact token, but the legal mass is known of the bitmask only. This sampler checks some
tokens beside the one that it draws, and its log_mass is the log of an unbiased estimate of the mass
that bitmask, checks and budget allow together: the weight that smc and mcmc need.

Law: E[exp(log_mass) * 1[token = v]] == p(v) * 1[v is legal]; the token is that of the ordinary
sampler. Greedy rows have no law, and are drawn as the ordinary sampler draws them.
Source: Lipkin et al., arXiv:2504.05410, algorithm 2; estimators.py says how the estimates differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, inf, log
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from plait.decoders.sampling import estimators
from plait.decoders.sampling.estimators import PEAKED, Weighed
from plait.decoders.sampling.methods import AwrsOptions
from plait.decoders.sampling.order import draw_order
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.kernels import noise
from plait.kernels.backend import KernelBackend

LOOPS = 2**63  # numbers of fresh noise: no fork of a text has such a number


@dataclass(frozen=True, slots=True)
class AwrsSampler(OrdinarySampler):
    """Weighs draws by checks; see the module's docstring."""

    is_weighing: ClassVar[bool] = True
    options: AwrsOptions = field(default_factory=AwrsOptions)

    def weigh(
        self,
        logits: Tensor,
        state: SamplingState,
        bitmask: Tensor | None,
        passes: Callable[[int], bool],
    ) -> tuple[Weighed, float] | None:
        """Return a draw of a row [1, vocab] under a check, and the log of the mass.

        None: the row is greedy. Checks are made for each token once.
        """
        if state.greedy:
            return None
        scores, log_mass = self.masked(logits, state, bitmask)
        row, known = _Row(scores, state, self.backend), dict[int, bool]()

        def check(token: int) -> bool:
            if token not in known:
                known[token] = passes(token)
            return known[token]

        found = self._estimate(row, check)
        weight = float(found.weight)
        return found, log_mass + log(weight) if weight > 0 else -inf

    def _estimate(self, row: _Row, check: Callable[[int], bool]) -> Weighed:
        options, name = self.options, self.options.estimator
        if name == "genlm":
            is_peaked = options.max_accepts > 2 or float(row.probs.max()) >= PEAKED
            name = "geometric" if is_peaked else "recursive"
        if name == "recursive":
            return estimators.recursive(row, check)
        if name == "des-raj":
            return estimators.des_raj(row, check, options.extra_checks)
        if name == "two-loop":
            return estimators.two_loop(row, check)
        return estimators.geometric(row, check, options.max_accepts)


class _Row:
    """One row's law under the bitmask, as the estimators see it (CheckedRow)."""

    def __init__(self, scores: Tensor, state: SamplingState, backend: KernelBackend) -> None:
        self._scores, self._state, self._backend = scores, state, backend
        self.probs = torch.softmax(scores.double(), dim=0)
        self.one = 1.0

    def order(self) -> Iterator[int]:
        return draw_order(self._scores, self._noise(self._state.text.noise.stream))

    def fresh_order(self, loop: int, excluded: Sequence[int]) -> Iterator[int]:
        stream = self._state.text.noise.fork(LOOPS + loop).stream
        scores = self._scores.clone()
        scores[list(excluded)] = -torch.inf
        return draw_order(scores, self._noise(stream))

    def prob(self, token: int) -> float:
        return float(self.probs[token])

    def num_draws(self, rejected: float) -> int:
        if rejected >= 1.0:
            return 2**62
        return max(ceil(log(1.0 - self._rng.random()) / log(rejected)), 1)

    @cached_property
    def _rng(self) -> Random:
        key = self._state.text.noise
        return Random(f"awrs {key.seed} {key.stream} {self._state.position}")

    def _noise(self, stream: int) -> Tensor:
        key = noise.key(self._state.text.noise.seed, stream, self._state.position)
        keys = torch.tensor([key], dtype=torch.int64, device=self._scores.device)
        return self._backend.gumbel(keys, len(self._scores))


def make_awrs(options: AwrsOptions, *, backend: KernelBackend) -> AwrsSampler:
    """Build the sampler."""
    return AwrsSampler(backend, options)
