"""Dynamic: unmasks all positions that pass a threshold, but never fewer than a quota.

Law: let n positions have p >= threshold. If n >= tokens_per_step, those n are unmasked, otherwise
the tokens_per_step most confident ones. With a quota of 1 this is `threshold`.

Source: SDAR, arXiv:2510.06303, dynamic low-confidence decoding of the released code. Its settings
have thresholds of 0.85 to 0.9; the default is the lower one, which LMDeploy uses too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView, top_k


class DynamicOptions(Options):
    """The threshold, and the least number of positions per step."""

    threshold: float = Field(default=0.85, ge=0.0, le=2.0)
    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Dynamic(ByProbability[DynamicOptions]):
    """Unmasks what passes the threshold, and never fewer than a quota."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select what passes or the quota, whichever is more."""
        passing = view.p >= self.options.threshold
        if np.count_nonzero(passing) >= self.options.tokens_per_step:
            return Selection(passing)
        return Selection(top_k(view.p, self.options.tokens_per_step))


make = Dynamic.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="dynamic",
    summary="Unmasks every position that is probable enough, but never fewer than a quota.",
    source="SDAR, arXiv:2510.06303",
    target="plait.decoders.diffusion.selectors.dynamic:make",
    options=DynamicOptions,
    needs=frozenset({"canvas"}),
    presets={"sdar": {"threshold": 0.9}, "lmdeploy": {"threshold": 0.85}},
)
