"""EoTP (end-of-text prediction): stops decoding behind an end of the text that is certain.

Law: the text ends at the leftmost masked position whose token is an end token with p >= threshold.
Positions before it stay masked, positions behind it are dropped. Preset `reference` is the paper's
code: the end is the most confident position whose token is an end token, at any probability, and
can cut an answer short.

Source: Learn2PD, arXiv:2509.25188, section 3.3 (end-of-text prediction) and released code.
Differences: the threshold, and the leftmost position instead of the most confident one. The decoder
drops what is behind an unmasked end token with any method; the paper counts that in its gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import StepView


class EotpOptions(Options):
    """The threshold of an end token, and which of several is taken."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    choice: Literal["leftmost", "surest"] = "leftmost"


@dataclass(frozen=True, slots=True)
class Eotp:
    """Ends the text early."""

    options: EotpOptions

    def end(self, view: StepView) -> int | None:
        """Return the position that becomes the text's end, or None."""
        passing = view.is_end & (view.p >= self.options.threshold)
        if not passing.any():
            return None
        scores = view.p if self.options.choice == "surest" else np.ones_like(view.p)
        return int(view.positions[np.argmax(np.where(passing, scores, -1.0))])


def make(options: EotpOptions, **context: Any) -> Eotp:
    """Return the stopper."""
    return Eotp(options)


METHOD = Method(
    kind="unmasker",
    part="stopper",
    name="eotp",
    summary="Stops decoding behind an end of the text that is certain.",
    source="Learn2PD, arXiv:2509.25188, section 3.3",
    target="plait.decoders.diffusion.components.eotp:make",
    options=EotpOptions,
    needs=frozenset({"canvas"}),
    presets={
        "safe": {"threshold": 0.9, "choice": "leftmost"},
        "reference": {"threshold": 0.0, "choice": "surest"},
    },
)
