"""Random: k holes a step, in an order drawn once for all positions.

Law: every order of a block's holes is equally likely, and it depends on nothing but the request's
seed, the sequence and the positions. It is the choice of holes that the training objective assumes.

Source: LLaDA, arXiv:2502.09992, section 2.4 (random remasking). The reference draws new scores for
every step; one score a position, kept, gives the same law, and the step map stays a function of the
canvas, so that drafts can be verified.
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
GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1


class RandomOptions(Options):
    """How many holes a step."""

    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class RandomOrder:
    """Settles a fixed number of holes a step, wherever they are."""

    options: RandomOptions

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: what the model says plays no part."""
        return frozenset()

    def score(self, view: StepView) -> Floats:
        """Return a number from [0, 1) for each position, the same in every step."""
        seed, sequence = view.key
        words = np.array([seed & WORD, sequence & WORD], dtype=np.uint64)
        state = _mix(words[:1]) ^ words[1:]
        state = _mix(state) ^ view.holes.astype(np.uint64)
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def select(self, view: StepView, memory: Any) -> Selection:
        """Choose the next k of the order."""
        return Selection(top_k(self.score(view), self.options.tokens_per_step))


def _mix(words: Words) -> Words:
    """Scramble 64-bit words (Steele et al. 2014, SplitMix64); arrays wrap around silently."""
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
    summary="k holes a step in a random order.",
    source="LLaDA, arXiv:2502.09992, section 2.4",
    target="plait.decoders.diffusion.selectors.random_order:make",
    options=RandomOptions,
    needs=frozenset({"canvas"}),
    presets={"llada": {"tokens_per_step": 1}},
)
