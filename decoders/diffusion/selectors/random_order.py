"""Random: unmasks k positions per step, in an order drawn once for all positions.

Law: every order of a block's positions is equally likely. The order depends only on the request's
seed, the noise stream and the positions. The training objective assumes this selection.

Source: LLaDA, arXiv:2502.09992, section 2.4 (random remasking). The reference draws new scores in
every step. One fixed score per position gives the same distribution, and each step stays a function
of the canvas, so drafts can be verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Selection, StepView, top_k

Words = NDArray[np.uint64]
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
WORD = 2**64 - 1


class RandomOptions(Options):
    """How many positions per step."""

    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class RandomOrder:
    """Unmasks a fixed number of positions per step, in random order."""

    options: RandomOptions

    @property
    def needs(self) -> frozenset[str]:
        """Empty: the model's output is not used."""
        return frozenset()

    def score(self, view: StepView) -> Floats:
        """Return a number from [0, 1) for each position [m], the same in every step."""
        seed, stream = view.noise_key
        words = np.array([seed & WORD, stream & WORD], dtype=np.uint64)
        state = _mix(words[:1]) ^ words[1:]
        state = _mix(state) ^ view.positions.astype(np.uint64)
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select the next k positions of the order."""
        return Selection(top_k(self.score(view), self.options.tokens_per_step))


def _mix(words: Words) -> Words:
    """Mix 64-bit words (Steele et al. 2014, SplitMix64); arrays wrap around silently."""
    words = words + np.uint64(GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def make(options: RandomOptions, **context: Any) -> RandomOrder:
    """Return the selector."""
    return RandomOrder(options)


METHOD = Method(
    kind="unmasker",
    part="selector",
    name="random",
    summary="Unmasks k positions per step in a random order.",
    source="LLaDA, arXiv:2502.09992, section 2.4",
    target="plait.decoders.diffusion.selectors.random_order:make",
    options=RandomOptions,
    needs=frozenset({"canvas"}),
    presets={"llada": {"tokens_per_step": 1}},
)
