"""dParallel: unmasks every position of low entropy, on weights distilled to be certain early.

Law: the positions with entropy <= threshold (nats), or the one of least entropy if there is none.
The method's gain is in the weights: certainty-forcing distillation (benchmarks/tiny_diffusion)
lowers the entropy of positions that are already right. On other weights it is a plain threshold.

Source: dParallel, arXiv:2509.26488, sections 3.3 and 4.1, released decoding code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Selection, StepView


class DParallelOptions(Options):
    """The threshold on the entropy."""

    threshold: float = Field(default=0.5, ge=0.0)  # nats


@dataclass(frozen=True, slots=True)
class DParallel:
    """Unmasks positions of low entropy."""

    options: DParallelOptions

    @property
    def needs(self) -> frozenset[str]:
        """The positions' entropies."""
        return frozenset({"entropy"})

    def score(self, view: StepView) -> Floats:
        """Return the negative entropy, shape [m]."""
        assert view.entropy is not None
        return -view.entropy

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select all positions that pass."""
        assert view.entropy is not None
        return Selection(view.entropy <= self.options.threshold)


def make(options: DParallelOptions, **context: Any) -> DParallel:
    """Return the selector."""
    return DParallel(options)


METHOD = Method(
    kind="unmasker",
    part="selector",
    name="d-parallel",
    summary="Unmasks every position of low entropy; for weights distilled to be certain early.",
    source="dParallel, arXiv:2509.26488, section 4.1",
    target="plait.decoders.diffusion.selectors.d_parallel:make",
    options=DParallelOptions,
    needs=frozenset({"canvas"}),
    excludes=frozenset({"credit"}),  # few steps leave no history for credits
    presets={
        "llada": {"threshold": 0.5},
        "llada-mbpp": {"threshold": 0.45},
        "dream": {"threshold": 0.45},
        "dream-code": {"threshold": 0.5},
    },
)
