"""EoTP: once the end of the text is certain, what would follow it is not decoded.

Law: the text ends at the leftmost open hole whose token is an end with p >= threshold; the holes on
its left stay open, those on its right are given up. Preset `reference` is the paper's code: the end
is the surest hole whose token is one, however sure that is, and can cut an answer short.

Source: Learn2PD, arXiv:2509.25188, section 3.3 (end-of-text prediction) and released code.
Departures: the threshold, and the leftmost hole instead of the surest. What lies behind an end that
is settled the host gives up with any method; the paper counts that in its gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import StepView


class EotpOptions(Options):
    """When an end is believed, and which one of several."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    choice: Literal["leftmost", "surest"] = "leftmost"


@dataclass(frozen=True, slots=True)
class Eotp:
    """Ends the text early."""

    options: EotpOptions

    def end(self, view: StepView) -> int | None:
        """Return the position that becomes the text's end."""
        passing = view.is_end & (view.p >= self.options.threshold)
        if not passing.any():
            return None
        scores = view.p if self.options.choice == "surest" else np.ones_like(view.p)
        return int(view.holes[np.argmax(np.where(passing, scores, -1.0))])


def make(options: EotpOptions, **context: Any) -> Eotp:
    """Return the stopper."""
    return Eotp(options)


METHOD = Method(
    kind="unmasker",
    part="stopper",
    name="eotp",
    summary="Gives up what lies behind an end of the text that is certain.",
    source="Learn2PD, arXiv:2509.25188, section 3.3",
    target="plait.decoders.diffusion.components.eotp:make",
    options=EotpOptions,
    needs=frozenset({"canvas"}),
    presets={
        "safe": {"threshold": 0.9, "choice": "leftmost"},
        "reference": {"threshold": 0.0, "choice": "surest"},
    },
)
