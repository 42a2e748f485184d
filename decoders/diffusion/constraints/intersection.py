"""Which selected tokens may stand together on a canvas: those whose gaps can be filled.

A step's selection is checked as a whole, and halved where it fails, so that a refused token costs a
logarithm of checks. A refused token is drawn again without it, at the same position and with the
same noise. Where a check ends without an answer (a limit, or a filling that no tokens spell), a
token stands if the lookahead (prefix_matcher.py) accepts it. If nothing stands, the first masked
position takes its token under the exact mask, or that of the shortest filling: so every step
unmasks a position, the prefix is always a legal beginning that can be completed in time, and the
answer is complete whatever was judged behind it. Law: with a language of all texts, the answer is
that of the same methods without a constraint, bit for bit.

Source: Mündler et al. 2025, arXiv:2508.10111, section 4. Differences: the paper checks one token
after the other, takes an exhausted limit for a refusal, redraws among all positions, and writes the
shortest filling when its tries are used up; here the mask and the closing tokens of the prefix see
to that, from the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from plait.decoders.contract.constraint import Constraint, GapFilling
from plait.decoders.contract.registry import MethodError
from plait.decoders.diffusion.constraints.canvas_constraint import (
    ConstrainedDraws,
    LookaheadJob,
    constrain_draws,
)
from plait.decoders.diffusion.constraints.cfg_intersection import CfgIntersectionOptions
from plait.decoders.diffusion.constraints.infill import InfillConstraint
from plait.decoders.diffusion.draws import draw_legal
from plait.decoders.diffusion.protocols import Bools, Floats, StepView
from plait.kernels.backend import KernelBackend


@dataclass(frozen=True, slots=True)
class CfgIntersection:
    """See the module."""

    options: CfgIntersectionOptions
    fills_forced: ClassVar[bool] = True

    def check(self, constraint: Constraint) -> None:
        """Raise MethodError if the constraint can't judge texts with gaps."""
        if not hasattr(constraint, "fill_gaps"):
            raise MethodError(
                "cfg-intersection is for forms that their grammar decides; more decides this one, "
                "such as that items differ.",
                "decoding.unmasker",
            )

    def constrain(
        self, jobs: Sequence[LookaheadJob], *, backend: KernelBackend
    ) -> Sequence[ConstrainedDraws | str]:
        """Return every draw as allowed, to be checked once some are selected."""
        between = [isinstance(job.constraint, InfillConstraint) for job in jobs]
        behind = [job for job, is_between in zip(jobs, between, strict=True) if not is_between]
        ahead = iter(constrain_draws(behind, backend=backend))
        found = []
        for job, is_between in zip(jobs, between, strict=True):
            own = _vouching_for_nothing(job.view) if is_between else next(ahead)
            found.append(own if isinstance(own, str) else self._opened(job, own, backend))
        return found

    def _opened(
        self, job: LookaheadJob, ahead: ConstrainedDraws, backend: KernelBackend
    ) -> ConstrainedDraws:
        """Return the draws with the lookahead's tokens where it has come."""
        own, known = job.view, ahead.allowed
        view = replace(
            own,
            tokens=np.where(known, ahead.view.tokens, own.tokens),
            p=np.where(known, ahead.view.p, own.p),
            is_end=np.where(known, ahead.view.is_end, own.is_end),
        )

        def admit(view: StepView, chosen: Bools, scores: Floats) -> tuple[StepView, Bools]:
            return _Admission(job, ahead, backend, view, self.options.redraws).of(chosen, scores)

        return replace(ahead, view=view, allowed=np.ones_like(known), admit=admit)


def _vouching_for_nothing(view: StepView) -> ConstrainedDraws:
    """Return the draws as a lookahead would that accepts none of them."""
    nothing = np.zeros(len(view.tokens), np.bool_)
    return ConstrainedDraws(view, nothing, nothing, nothing)


def make(options: CfgIntersectionOptions, **context: Any) -> CfgIntersection:
    """Return the method; only its options matter."""
    return CfgIntersection(options)


@dataclass(slots=True)
class _Admission:
    """What a step has selected, on its way to the canvas. Indices count the view's positions."""

    job: LookaheadJob
    ahead: ConstrainedDraws
    backend: KernelBackend
    view: StepView
    redraws: int
    admitted: dict[int, int] = field(default_factory=dict)  # token by index

    def of(self, chosen: Bools, scores: Floats) -> tuple[StepView, Bools]:
        """Return the view with its tokens, and what may be unmasked."""
        tokens = self.view.tokens
        required = np.flatnonzero(self.ahead.required)
        self.admitted |= {i: int(tokens[i]) for i in required.tolist()}
        order = np.argsort(-scores, kind="stable")
        self._admit([int(i) for i in order if chosen[i] and i not in self.admitted])
        if not self.admitted:
            self.admitted[0] = self._last_resort()
        may = np.zeros_like(chosen)
        may[list(self.admitted)] = True
        tokens = tokens.copy()
        tokens[list(self.admitted)] = list(self.admitted.values())
        is_end = np.isin(tokens, self.job.constraint.stops)
        return replace(self.view, tokens=tokens, is_end=is_end), may

    def _admit(self, indices: Sequence[int]) -> None:
        """Admit what can stand together with what is admitted, in this order of preference."""
        if not indices:
            return
        drawn = {i: int(self.view.tokens[i]) for i in indices}
        can_stand = self._can_stand(drawn)
        if can_stand:
            self.admitted |= drawn
        elif len(indices) > 1:
            half = len(indices) // 2
            self._admit(indices[:half])
            self._admit(indices[half:])
        elif can_stand is None and self.ahead.allowed[indices[0]]:
            self.admitted |= drawn
        else:
            self._redraw(indices[0], drawn[indices[0]])

    def _can_stand(self, drawn: dict[int, int]) -> bool | None:
        """Return whether tokens can stand together with those admitted; None: unknown."""
        return self._fill(self.admitted | drawn).exists

    def _fill(self, tokens: Mapping[int, int]) -> GapFilling:
        """Fill the gaps that tokens at masked positions leave."""
        placed = {int(self.view.positions[i]): token for i, token in tokens.items()}
        return self.job.constraint.fill_gaps(self.job.canvas, self.view.stop, placed)

    def _last_resort(self) -> int:
        """Return the token of the first masked position, where nothing that was selected stands.

        That is the one that its mask gives; or, if it can't stand, that of a filling.
        """
        token, is_vouched_for = int(self.ahead.view.tokens[0]), bool(self.ahead.allowed[0])
        can_stand = self._can_stand({0: token})
        if can_stand or (can_stand is None and is_vouched_for):
            return token
        found = self.job.constraint.next_of(self.job.canvas, self.view.stop)
        return token if found is None else found

    def _redraw(self, index: int, refused: int) -> None:
        """Admit another token of a position, if one of the next likely can stand there."""
        scores, position = self.job.scores, self.view.positions[index]
        row = int(np.searchsorted(self.job.job.positions, position))
        bits = np.full((1, -(-scores.shape[1] // 32)), -1, np.int32)
        while self.redraws:
            self.redraws -= 1
            bits.view(np.uint32)[0, refused // 32] &= ~np.uint32(1 << refused % 32)
            job = self.job.job.at(row, torch.from_numpy(bits))
            refused = int(draw_legal(scores, [job], backend=self.backend).tokens[0])
            if self._can_stand({index: refused}):
                self.admitted[index] = refused
                return
