"""Entropy bound: unmasks as many confident positions as a bound on their joint error allows.

Law: in the order of scores, the longest prefix whose entropies, without the greatest one, sum to at
most `bound` (nats); at least one position. That sum bounds the divergence between the joint
distribution of the set and the product of its marginals. Bound 0 is static decoding by entropy,
except for positions of entropy 0.

Source: EB-Sampler, arXiv:2505.24857, section 4 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Selection, StepView, top_k


class EntropyBoundOptions(Options):
    """The error bound of one step, and which positions come first."""

    bound: float = Field(default=0.1, ge=0.0)  # nats
    order: Literal["entropy", "confidence"] = "entropy"


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """Unmasks positions until the entropy bound is used up."""

    options: EntropyBoundOptions

    @property
    def needs(self) -> frozenset[str]:
        """The positions' entropies."""
        return frozenset({"entropy"})

    def score(self, view: StepView) -> Floats:
        """Return the score [m] that the order is by."""
        assert view.entropy is not None
        return -view.entropy if self.options.order == "entropy" else view.p

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select the longest prefix within the bound; the sum rises with its length."""
        assert view.entropy is not None
        scores = self.score(view)
        ordered = view.entropy[np.argsort(-scores, kind="stable")]
        # zero-padded sums: exactly 0 for one position, which cumsum - maximum might not be
        greatest = np.maximum.accumulate(ordered)
        before = np.concatenate([[0.0], np.cumsum(np.minimum(ordered[1:], greatest[:-1]))])
        return Selection(top_k(scores, int(np.count_nonzero(before <= self.options.bound))))


def make(options: EntropyBoundOptions, **context: Any) -> EntropyBound:
    """Return the selector."""
    return EntropyBound(options)


METHOD = Method(
    kind="unmasker",
    part="selector",
    name="entropy-bound",
    summary="Unmasks the largest set whose entropies, without the greatest, stay in a bound.",
    source="EB-Sampler, arXiv:2505.24857, algorithm 1",
    target="plait.decoders.diffusion.selectors.entropy_bound:make",
    options=EntropyBoundOptions,
    needs=frozenset({"canvas"}),
    presets={
        "eb-sampler": {"bound": 0.1},
        "diffusion-gemma": {"bound": 0.1},
        "sglang": {"bound": 0.15},
        "sdar": {"bound": 0.35},
    },
)
