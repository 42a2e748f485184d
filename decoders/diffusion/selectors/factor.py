"""Factor: as many of the surest holes as their joint mode can bear.

Law: with probabilities sorted falling, c(1) >= c(2) >= .., the n best holes for the largest n with
(n + 1) * (1 - c(n)) < factor, and at least one. If every one of n tokens has a probability above
1 - e and (n + 1) * e <= 1, then their joint mode is the tuple of their own best tokens. A factor
towards 0 is static decoding; 1 is where that theorem holds.

Source: Fast-dLLM, arXiv:2505.22618, section 3.3 and theorem 1. Written from the inequality: the
reference's loop treats the first and the last hole in another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Selection, StepView, top_k


class FactorOptions(Options):
    """How much doubt a step may hold."""

    factor: float = Field(default=1.0, ge=0.0)


@dataclass(frozen=True, slots=True)
class Factor(ByProbability[FactorOptions]):
    """Settles a number of holes that shrinks with their doubt."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Choose the n best; the left side rises with n, so those that fit are counted."""
        doubt = 1.0 - np.sort(view.p)[::-1]
        fits = (np.arange(len(doubt)) + 2) * doubt < self.options.factor
        return Selection(top_k(view.p, max(1, int(np.count_nonzero(fits)))))


make = Factor.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="factor",
    summary="As many of the surest holes as bound the error of their joint mode.",
    source="Fast-dLLM, arXiv:2505.22618, theorem 1",
    target="plait.decoders.diffusion.selectors.factor:make",
    options=FactorOptions,
    needs=frozenset({"canvas"}),
    presets={"fast-dllm": {"factor": 1.0}},
)
