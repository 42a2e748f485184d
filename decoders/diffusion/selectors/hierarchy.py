"""Hierarchy: unmasks the best position of every run, so that positions unmasked together lie apart.

A run is a maximal sequence of neighbouring masked positions. Law: the positions with p >=
threshold, and of each run the most confident one if its p > low; the most confident of all if there
is none. With one run it is `threshold`, because the most confident position is always unmasked.

Source: dInfer, arXiv:2510.08666, section 3 (hierarchical decoding). The reference writes p >
threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView


class HierarchyOptions(Options):
    """The threshold of every position, and the one for the best of a run."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    low: float = Field(default=0.4, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class Hierarchy(ByProbability[HierarchyOptions]):
    """Unmasks what passes the threshold, and the best of every run."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select all that pass and the best of each run."""
        unmask = view.p >= self.options.threshold
        runs = np.cumsum(np.diff(view.positions, prepend=view.positions[0]) > 1)
        # by run, then falling p, then position: the first of a run is its best
        order = np.lexsort((view.positions, -view.p, runs))
        best = order[np.diff(runs[order], prepend=-1) > 0]
        unmask[best[view.p[best] > self.options.low]] = True
        return Selection(unmask)


make = Hierarchy.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="hierarchy",
    summary="Unmasks every position that is probable enough, and the best of every masked run.",
    source="dInfer, arXiv:2510.08666, section 3",
    target="plait.decoders.diffusion.selectors.hierarchy:make",
    options=HierarchyOptions,
    needs=frozenset({"canvas"}),
    presets={"dinfer": {"threshold": 0.9, "low": 0.4}},
)
