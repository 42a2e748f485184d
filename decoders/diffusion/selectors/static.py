"""Static: unmasks the k most confident positions per step, whatever their probabilities.

Confidence is the probability of the drawn token, its margin over the runner-up, the negative
entropy, or the order of the text. Law: k positions are unmasked per step, those with the highest
scores; ties go to the lowest position. With k = 1 this is the decoding that lossless methods must
reproduce.

Source: LLaDA, arXiv:2502.09992, section 2.4 (low-confidence remasking); Dream, arXiv:2508.15487
(maskgit_plus, topk_margin, entropy). They fix the number of steps; here the quota k is fixed, which
is the same for steps = positions / k. Dream's alg_temp, which samples positions instead of taking
the best, is left out: `random` needs no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Selection, StepView, top_k

Strategy = Literal["confidence", "margin", "entropy", "left_to_right"]


class StaticOptions(Options):
    """How many positions per step, and which come first."""

    tokens_per_step: int = Field(default=1, ge=1)
    strategy: Strategy = "confidence"


@dataclass(frozen=True, slots=True)
class Static:
    """Unmasks a fixed number of positions per step."""

    options: StaticOptions

    @property
    def needs(self) -> frozenset[str]:
        """The statistic that the strategy ranks by."""
        return NEEDS.get(self.options.strategy, frozenset())

    def score(self, view: StepView) -> Floats:
        """Return the strategy's score of each position, shape [m]."""
        return SCORES[self.options.strategy](view)

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select the k best-scored positions."""
        return Selection(top_k(self.score(view), self.options.tokens_per_step))


def _margin(view: StepView) -> Floats:
    assert view.p2 is not None
    return view.p - view.p2


def _negative_entropy(view: StepView) -> Floats:
    assert view.entropy is not None
    return -view.entropy


NEEDS: Mapping[Strategy, frozenset[str]] = {
    "margin": frozenset({"p2"}),
    "entropy": frozenset({"entropy"}),
}
SCORES: Mapping[Strategy, Callable[[StepView], Floats]] = {
    "confidence": lambda view: view.p,
    "margin": _margin,
    "entropy": _negative_entropy,
    "left_to_right": lambda view: -view.positions.astype(float),
}


def make(options: StaticOptions, **context: Any) -> Static:
    """Return the selector."""
    return Static(options)


METHOD = Method(
    kind="unmasker",
    part="selector",
    name="static",
    summary="Unmasks the k most confident positions per step.",
    source="LLaDA, arXiv:2502.09992, section 2.4; Dream, arXiv:2508.15487",
    target="plait.decoders.diffusion.selectors.static:make",
    options=StaticOptions,
    needs=frozenset({"canvas"}),
    presets={
        "llada": {"tokens_per_step": 1, "strategy": "confidence"},
        "dream": {"tokens_per_step": 1, "strategy": "entropy"},
        "sequential": {"tokens_per_step": 1, "strategy": "left_to_right"},
    },
)
