"""Threshold: unmasks every position whose token is probable enough.

Law: the positions with p >= threshold, or the most confident one if there is none. With a threshold
above 1 this is static decoding, one token per step. For an ideal model of shuffled lists it is
exact if and only if threshold > 1/2.

Source: Fast-dLLM, arXiv:2505.22618, section 3.3 and algorithm 1. The reference always unmasks the
most confident position, which gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView


class ThresholdOptions(Options):
    """The threshold on the token's probability."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)


@dataclass(frozen=True, slots=True)
class Threshold(ByProbability[ThresholdOptions]):
    """Unmasks the positions that pass the threshold."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select all positions that pass."""
        return Selection(view.p >= self.options.threshold)


make = Threshold.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="threshold",
    summary="Unmasks every position whose token is probable enough.",
    source="Fast-dLLM, arXiv:2505.22618, section 3.3",
    target="plait.decoders.diffusion.selectors.threshold:make",
    options=ThresholdOptions,
    needs=frozenset({"canvas"}),
    presets={
        "fast-dllm": {"threshold": 0.9},
        "llada2": {"threshold": 0.95},
        "fast-dllm-v2": {"threshold": 0.9},
    },
)
