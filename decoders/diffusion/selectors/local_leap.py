"""LocalLeap: a lower bar for holes near one that is sure.

An anchor is a hole with p >= anchor. Law: the anchors, and the holes within `radius` positions of
one that have p >= relaxed; the surest hole if there is none. With relaxed = anchor or radius = 0 it
is `threshold`, and never settles less than that.

Source: LocalLeap, arXiv:2510.07081, section 4. `anchors: previous_step` is ours: a neighbour's
probability was computed before an anchor of the same step was there, so only those of the step
before lower the bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Bools, ByProbability, Ints, Selection, StepView


class LocalLeapOptions(Options):
    """The two bars, and how far an anchor reaches."""

    anchor: float = Field(default=0.9, ge=0.0, le=2.0)
    relaxed: float = Field(default=0.75, ge=0.0, le=2.0)
    radius: int = Field(default=4, ge=0)  # positions
    anchors: Literal["same_step", "previous_step"] = "same_step"


@dataclass(frozen=True, slots=True)
class LocalLeap(ByProbability[LocalLeapOptions]):
    """Settles what is sure, and what is nearly so beside it. Memory: the last step's anchors."""

    def select(self, view: StepView, memory: Ints | None) -> Selection:
        """Choose anchors and their neighbours."""
        is_anchor = view.p >= self.options.anchor
        anchors = view.holes[is_anchor]
        if self.options.anchors == "same_step":
            around = anchors
        else:
            around = memory if memory is not None else anchors[:0]
        near = _near(view.holes, around, self.options.radius)
        return Selection(is_anchor | (near & (view.p >= self.options.relaxed)), anchors)


def _near(holes: Ints, anchors: Ints, radius: int) -> Bools:
    """Mark the holes [h] that lie within radius positions of an anchor."""
    marks: Bools = (np.abs(holes[:, None] - anchors[None, :]) <= radius).any(axis=1)
    return marks


make = LocalLeap.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="local-leap",
    summary="A threshold that is lower near holes that pass it.",
    source="LocalLeap, arXiv:2510.07081, section 4",
    target="plait.decoders.diffusion.selectors.local_leap:make",
    options=LocalLeapOptions,
    needs=frozenset({"canvas"}),
    presets={
        "llada": {"anchor": 0.9, "relaxed": 0.75, "radius": 4},
        "dream": {"anchor": 0.9, "relaxed": 0.75, "radius": 4},
    },
)
