"""LocalLeap: lowers the threshold near confident positions.

An anchor is a position with p >= anchor. Law: the anchors are unmasked, and the positions within
`radius` of an anchor that have p >= relaxed; the most confident position if there is none. With
relaxed = anchor or radius = 0 it is `threshold`, and it never unmasks fewer positions than that.

Source: LocalLeap, arXiv:2510.07081, section 4. `anchors: previous_step` is an addition: a
neighbour's probability was computed before an anchor of the same step was there, so with it only
anchors of the previous step lower the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Bools, ByProbability, Ints, Selection, StepView


class LocalLeapOptions(Options):
    """The two thresholds, and the radius of an anchor."""

    anchor: float = Field(default=0.9, ge=0.0, le=2.0)
    relaxed: float = Field(default=0.75, ge=0.0, le=2.0)
    radius: int = Field(default=4, ge=0)  # positions
    anchors: Literal["same_step", "previous_step"] = "same_step"


@dataclass(frozen=True, slots=True)
class LocalLeap(ByProbability[LocalLeapOptions]):
    """Unmasks anchors and their neighbours. Memory: the last step's anchors."""

    def select(self, view: StepView, memory: Ints | None) -> Selection:
        """Select anchors and their neighbours."""
        is_anchor = view.p >= self.options.anchor
        anchors = view.positions[is_anchor]
        if self.options.anchors == "same_step":
            around = anchors
        else:
            around = memory if memory is not None else anchors[:0]
        near = _near(view.positions, around, self.options.radius)
        return Selection(is_anchor | (near & (view.p >= self.options.relaxed)), anchors)


def _near(positions: Ints, anchors: Ints, radius: int) -> Bools:
    """Return [m] whether a position lies within the radius of an anchor."""
    marks: Bools = (np.abs(positions[:, None] - anchors[None, :]) <= radius).any(axis=1)
    return marks


make = LocalLeap.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="local-leap",
    summary="A threshold that is lower near positions that pass it.",
    source="LocalLeap, arXiv:2510.07081, section 4",
    target="plait.decoders.diffusion.selectors.local_leap:make",
    options=LocalLeapOptions,
    needs=frozenset({"canvas"}),
    presets={
        "llada": {"anchor": 0.9, "relaxed": 0.75, "radius": 4},
        "dream": {"anchor": 0.9, "relaxed": 0.75, "radius": 4},
    },
)
