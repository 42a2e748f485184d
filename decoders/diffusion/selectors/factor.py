"""Factor: unmasks as many confident positions as the error bound of their joint mode allows.

Law: with probabilities in falling order, c(1) >= c(2) >= .., the n best positions for the largest n
with (n + 1) * (1 - c(n)) < factor, and at least one. If each of n tokens has a probability above
1 - e and (n + 1) * e <= 1, then the mode of their joint distribution is the tuple of their own best
tokens. A factor near 0 is static decoding; factor 1 is where that theorem holds.

Source: Fast-dLLM, arXiv:2505.22618, section 3.3 and theorem 1. Written from the inequality: the
reference's loop treats the first and the last position differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView, top_k


class FactorOptions(Options):
    """The error bound of one step."""

    factor: float = Field(default=1.0, ge=0.0)


@dataclass(frozen=True, slots=True)
class Factor(ByProbability[FactorOptions]):
    """Unmasks fewer positions the less probable they are."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select the n best. The left side rises with n, so the positions that fit are counted."""
        error = 1.0 - np.sort(view.p)[::-1]
        fits = (np.arange(len(error)) + 2) * error < self.options.factor
        return Selection(top_k(view.p, max(1, int(np.count_nonzero(fits)))))


make = Factor.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="factor",
    summary="Unmasks as many confident positions as the error bound of their joint mode allows.",
    source="Fast-dLLM, arXiv:2505.22618, theorem 1",
    target="plait.decoders.diffusion.selectors.factor:make",
    options=FactorOptions,
    needs=frozenset({"canvas"}),
    presets={"fast-dllm": {"factor": 1.0}},
)
