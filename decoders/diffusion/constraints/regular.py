"""Draws under a constraint that a finite automaton reads: all positions of a block together.

Law: the tokens that a step may unmask stand in one accepted text with everything unmasked, which
can be completed in time; so nothing is ever masked again. Forced tokens are drawn as well: the text
may be forced, but not how it is spelled, and an exact law counts all spellings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from plait.decoders.contract.constraint import NotFinite, TokenDfa, token_dfa
from plait.decoders.contract.registry import MethodError, Options
from plait.decoders.diffusion.constraints.canvas_constraint import (
    DISALLOWED,
    ConstrainedDraws,
    LookaheadJob,
    constrain_draws,
)
from plait.decoders.diffusion.constraints.posterior import (
    BEHIND_END,
    Posterior,
    transitions_of,
)
from plait.decoders.diffusion.constraints.prefix_matcher import MASK
from plait.decoders.diffusion.draws import row_scores, token_probs
from plait.decoders.diffusion.protocols import TOP, Floats, Ints, StepView
from plait.kernels.backend import KernelBackend


@dataclass(frozen=True, slots=True)
class RegularMethod:
    """Draws from the posterior of a block."""

    name: str
    is_marginal: bool  # draw, and show marginals; else take the best text
    fills_forced: ClassVar[bool] = False

    def check(self, constraint: Any) -> None:
        """Raise MethodError if no finite automaton reads what the constraint accepts."""
        try:
            token_dfa(constraint)
        except NotFinite as error:
            raise MethodError(
                f"{self.name} is for constraints that a finite automaton reads, such as a regex, "
                f"a choice or a schema without recursion: {error}.",
                "decoding.unmasker",
            ) from None

    def constrain(
        self, jobs: Sequence[LookaheadJob], *, backend: KernelBackend
    ) -> Sequence[ConstrainedDraws | str]:
        """Return each job's draws from its posterior; of one without texts, the lookahead's."""
        return [self._constrained(job, backend) for job in jobs]

    def _constrained(self, job: LookaheadJob, backend: KernelBackend) -> ConstrainedDraws | str:
        found = _posterior(job, backend, temperature=None)
        if found is None:
            return constrain_draws([job], backend=backend)[0]
        settings, view = job.job.settings, job.view
        law = found if settings.temperature == 1 and settings.is_plain else None
        law = law or _posterior(job, backend, temperature=settings.temperature)
        if law is None:  # what truncation leaves can't be accepted
            return constrain_draws([job], backend=backend)[0]
        tokens = np.array(self._tokens(law, job, backend), np.int64)[_places(job)]
        is_text = tokens != BEHIND_END
        view = replace(view, tokens=np.where(is_text, tokens, view.tokens))
        view = self._described(view, found, job, backend)
        view = replace(
            view,
            is_end=np.isin(view.tokens, job.constraint.stops),
            p=np.where(is_text, view.p, 0.0),
            p2=None if view.p2 is None else np.where(is_text, view.p2, 0.0),
            entropy=None if view.entropy is None else np.where(is_text, view.entropy, DISALLOWED),
        )
        nothing = np.zeros_like(is_text)
        return ConstrainedDraws(view, is_text, nothing, nothing)

    def _tokens(self, law: Posterior, job: LookaheadJob, backend: KernelBackend) -> list[int]:
        settings = job.job.settings
        if not settings.temperature:
            return law.best()
        keys = [(*settings.noise_key, int(position)) for position in job.view.positions]
        own = torch.tensor(keys, device=job.scores.device)
        noise = backend.gumbel(own, law.scores.shape[1]).double().cpu().numpy()
        if self.is_marginal:
            return law.draw(noise)
        return replace(law, scores=law.scores + noise).best()

    def _described(
        self, view: StepView, law: Posterior, job: LookaheadJob, backend: KernelBackend
    ) -> StepView:
        """Return the view with the probabilities of its tokens."""
        if not self.is_marginal:
            rows = job.job.rows[_read(job)]
            return replace(view, p=token_probs(job.scores, rows, view.tokens, backend=backend))
        marginals = law.marginals()
        at = np.arange(len(view.tokens))
        p = marginals[at, view.tokens]
        others = marginals.copy()
        others[at, view.tokens] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(marginals > 0, marginals * np.log(marginals), 0.0)
        return replace(
            view,
            p=p,
            p2=None if view.p2 is None else others.max(axis=1),
            entropy=None if view.entropy is None else -terms.sum(axis=1),
            top=None if view.top is None else _top(marginals),
        )


def make_dingo(options: Options, **context: Any) -> RegularMethod:
    """Return DINGO, which has no options."""
    return RegularMethod("dingo", is_marginal=False)


def make_marginal(options: Options, **context: Any) -> RegularMethod:
    """Return the exact draws, which have no options."""
    return RegularMethod("marginal", is_marginal=True)


def _top(marginals: Floats) -> tuple[Ints, Floats]:
    """Return the best tokens of each row and their probabilities, best first."""
    order = np.argsort(-marginals, axis=1, kind="stable")[:, :TOP]
    return order, np.take_along_axis(marginals, order, axis=1)


def _read(job: LookaheadJob) -> Ints:
    """Return the indices of the view's positions among those that were read."""
    return np.searchsorted(job.job.positions, job.view.positions)


def _places(job: LookaheadJob) -> Ints:
    """Return the places in the span of the view's positions."""
    return job.view.positions - job.constraint.span_start(job.canvas)


def _posterior(
    job: LookaheadJob, backend: KernelBackend, *, temperature: float | None
) -> Posterior | None:
    """Return the posterior of the block's positions; None if the constraint accepts no text.

    temperature: of the request, with all of its other parameters; None: 1, before truncation.
    """
    prefix, span = job.constraint.answer(job.canvas, job.view.stop)
    dfa: TokenDfa = token_dfa(job.constraint.matcher.constraint)
    moves = transitions_of(dfa, frozenset(job.constraint.stops))
    start = moves.walk(prefix)
    if start is None or start == moves.end:
        return None
    rows, masked = list[int](), 0
    for token in span.tokens:
        rows.append(masked if token == MASK else -1 - token)
        masked += token == MASK
    assert masked == len(job.view.positions), "a step sees all that is masked in its block"
    scores = row_scores(job.scores, job.job, temperature, backend=backend)[_read(job)]
    law = Posterior(moves, start, rows, span.limit - span.first, scores)
    return law if law.exists else None
