"""CreditDecoding: adds to the logits of tokens that were drawn at their position in earlier steps.

In every step all credits of a position are multiplied by `fade`, and the token v drawn there gains
p(v)^power. Law: a position's logits become l(v) + weight * log(1 + C(v)); tokens and statistics are
then computed again from these. weight = 0 changes nothing. Few tokens are ever drawn at a position,
so only `slots` of them are kept and the one with the least credit is replaced: exact while no more
than that many were drawn.

Source: CreditDecoding, arXiv:2510.06133, section 4; the tuning-free variant (weight and fade are
the unmasked share of the block, power is 1) is its section 4.3. Difference: while sampling, credit
goes to the token drawn, not to the most probable one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Ints, LogitBias, StepView


class CreditOptions(Options):
    """Weight, decay and growth of credits."""

    weight: float = Field(default=0.65, ge=0.0)  # alpha
    fade: float = Field(default=0.7, ge=0.0, le=1.0)  # beta
    power: float = Field(default=0.2, ge=0.0)  # gamma
    slots: int = Field(default=8, ge=1, le=64)  # tokens remembered per position
    schedule: Literal["fixed", "settled_share"] = "fixed"


@dataclass(frozen=True, slots=True)
class CreditMemory:
    """The block's credits so far; an empty slot has token -1 and credit 0."""

    positions: Ints  # [m] rising
    tokens: Ints  # [m, slots]
    credits: Floats  # [m, slots]


@dataclass(frozen=True, slots=True)
class Credit:
    """Adds credits to logits. Memory: the credits of the positions that the last step saw."""

    options: CreditOptions

    @property
    def needs(self) -> frozenset[str]:
        """Empty: only tokens and p are read."""
        return frozenset()

    def bias(self, view: StepView, memory: CreditMemory | None) -> LogitBias:
        """Decay the credits, add this step's, and return the bias of all."""
        weight, fade, power = self._rates(view)
        tokens, credits = _carried(view.positions, memory, self.options.slots)
        tokens, credits = _give(tokens, credits * fade, view.tokens, view.p**power)
        rows, columns = np.nonzero(credits > 0.0)
        deltas = weight * np.log1p(credits[rows, columns])
        return LogitBias(
            rows.astype(np.int64),
            tokens[rows, columns],
            deltas,
            CreditMemory(view.positions, tokens, credits),
        )

    def _rates(self, view: StepView) -> tuple[float, float, float]:
        if self.options.schedule == "fixed":
            return self.options.weight, self.options.fade, self.options.power
        unmasked = 1.0 - len(view.positions) / (view.stop - view.start)
        return unmasked, unmasked, 1.0


def _carried(positions: Ints, memory: CreditMemory | None, slots: int) -> tuple[Ints, Floats]:
    """Return the positions' slots as the last step left them; those of new positions are empty."""
    tokens = np.full((len(positions), slots), -1, dtype=np.int64)
    credits = np.zeros((len(positions), slots))
    if memory is not None:
        known = np.isin(positions, memory.positions)
        at = np.searchsorted(memory.positions, positions[known])
        tokens[known], credits[known] = memory.tokens[at], memory.credits[at]
    return tokens, credits


def _give(tokens: Ints, credits: Floats, drawn: Ints, gains: Floats) -> tuple[Ints, Floats]:
    """Add each row's gain to its token's slot, or to the slot with the least credit."""
    matches = tokens == drawn[:, None]
    has_slot = matches.any(axis=1)
    column = np.where(has_slot, matches.argmax(axis=1), credits.argmin(axis=1))
    rows = np.arange(len(drawn))
    credits[rows, column] = np.where(has_slot, credits[rows, column], 0.0) + gains
    tokens[rows, column] = drawn
    return tokens, credits


def make(options: CreditOptions, **context: Any) -> Credit:
    """Return the scorer."""
    return Credit(options)


METHOD = Method(
    kind="unmasker",
    part="scorer",
    name="credit",
    summary="Adds to the logits of tokens that were drawn at their position in earlier steps.",
    source="CreditDecoding, arXiv:2510.06133, section 4",
    target="plait.decoders.diffusion.components.credit:make",
    options=CreditOptions,
    needs=frozenset({"canvas"}),
    excludes=frozenset({"d-parallel"}),  # few steps leave no history for credits
    presets={
        "paper": {"weight": 0.65, "fade": 0.7, "power": 0.2},
        "dinfer": {"weight": 0.7, "fade": 0.8, "power": 0.2},
        "tuning-free": {"schedule": "settled_share"},
    },
)
