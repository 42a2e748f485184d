"""Threshold: every hole whose token is probable enough.

Law: the holes with p >= threshold, or the surest one if there is none. Above 1 this is static
decoding, one token a step. For an ideal model of shuffled lists it is exact iff threshold > 1/2.

Source: Fast-dLLM, arXiv:2505.22618, section 3.3 and algorithm 1. The reference settles the surest
hole in any case, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView


class ThresholdOptions(Options):
    """What is probable enough."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)


@dataclass(frozen=True, slots=True)
class Threshold(ByProbability[ThresholdOptions]):
    """Settles what passes a bar."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Choose all that pass."""
        return Selection(view.p >= self.options.threshold)


make = Threshold.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="threshold",
    summary="Every hole whose token is probable enough.",
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
