"""Hierarchy: the best hole of every run of holes, so that what is settled at once lies apart.

A run is a maximal row of neighbouring open holes. Law: the holes with p >= threshold, and of each
run the surest one if its p > low; the surest of all if there is none. With one run it is
`threshold`, for the surest hole is settled in any case.

Source: dInfer, arXiv:2510.08666, section 3 (hierarchical decoding). The reference writes
p > threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView


class HierarchyOptions(Options):
    """The bar for every hole, and the one for the best of a run."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    low: float = Field(default=0.4, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class Hierarchy(ByProbability[HierarchyOptions]):
    """Settles what is sure, and something in every gap."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Choose all that pass and the best of each run."""
        settle = view.p >= self.options.threshold
        runs = np.cumsum(np.diff(view.holes, prepend=view.holes[0]) > 1)
        # by run, then falling p, then position: the first of a run is its best
        order = np.lexsort((view.holes, -view.p, runs))
        surest = order[np.diff(runs[order], prepend=-1) > 0]
        settle[surest[view.p[surest] > self.options.low]] = True
        return Selection(settle)


make = Hierarchy.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="hierarchy",
    summary="Every hole that is probable enough, and the best of every run of holes.",
    source="dInfer, arXiv:2510.08666, section 3",
    target="plait.decoders.diffusion.selectors.hierarchy:make",
    options=HierarchyOptions,
    needs=frozenset({"canvas"}),
    presets={"dinfer": {"threshold": 0.9, "low": 0.4}},
)
