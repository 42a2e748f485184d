"""CreditDecoding: tokens that keep winning a position get credit for it.

In every step all credits of a hole fade by `fade`, and the token v drawn there gains p(v)^power.
Law: a hole's scores are l(v) + weight * log(1 + C(v)); tokens and statistics are then computed
again from these. weight = 0 changes nothing. Few tokens ever win a position, so only `slots` of
them are kept, the least credit giving way: exact while no more than that have won.

Source: CreditDecoding, arXiv:2510.06133, section 4; the tuning-free variant (weight and fade are
the share of the block that is settled, power is 1) is its section 4.3. Departure: while sampling,
credit goes to the token drawn, not to the likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Floats, Ints, LogitBias, StepView


class CreditOptions(Options):
    """How much credit counts, lasts, and grows."""

    weight: float = Field(default=0.65, ge=0.0)  # alpha
    fade: float = Field(default=0.7, ge=0.0, le=1.0)  # beta
    power: float = Field(default=0.2, ge=0.0)  # gamma
    slots: int = Field(default=8, ge=1, le=64)  # tokens remembered a position
    schedule: Literal["fixed", "settled_share"] = "fixed"


@dataclass(frozen=True, slots=True)
class CreditMemory:
    """What has been earned in the block so far; an empty slot has token -1 and credit 0."""

    holes: Ints  # [h] rising
    tokens: Ints  # [h, slots]
    earned: Floats  # [h, slots]


@dataclass(frozen=True, slots=True)
class Credit:
    """Adds credit to scores. Memory: the credits of the holes that the last step saw."""

    options: CreditOptions

    @property
    def needs(self) -> frozenset[str]:
        """Nothing but tokens and p."""
        return frozenset()

    def bias(self, view: StepView, memory: CreditMemory | None) -> LogitBias:
        """Fade, give credit, and return what all of it is worth."""
        weight, fade, power = self._rates(view)
        tokens, earned = _carried(view.holes, memory, self.options.slots)
        tokens, earned = _give(tokens, earned * fade, view.tokens, view.p**power)
        rows, columns = np.nonzero(earned > 0.0)
        deltas = weight * np.log1p(earned[rows, columns])
        return LogitBias(
            rows.astype(np.int64),
            tokens[rows, columns],
            deltas,
            CreditMemory(view.holes, tokens, earned),
        )

    def _rates(self, view: StepView) -> tuple[float, float, float]:
        if self.options.schedule == "fixed":
            return self.options.weight, self.options.fade, self.options.power
        settled = 1.0 - len(view.holes) / (view.stop - view.start)
        return settled, settled, 1.0


def _carried(holes: Ints, memory: CreditMemory | None, slots: int) -> tuple[Ints, Floats]:
    """Return the holes' slots as the last step left them; new holes have none filled."""
    tokens = np.full((len(holes), slots), -1, dtype=np.int64)
    earned = np.zeros((len(holes), slots))
    if memory is not None:
        known = np.isin(holes, memory.holes)
        at = np.searchsorted(memory.holes, holes[known])
        tokens[known], earned[known] = memory.tokens[at], memory.earned[at]
    return tokens, earned


def _give(tokens: Ints, earned: Floats, winners: Ints, gains: Floats) -> tuple[Ints, Floats]:
    """Add each row's gain to its winner's slot, the poorest one if it has none."""
    matches = tokens == winners[:, None]
    has_slot = matches.any(axis=1)
    column = np.where(has_slot, matches.argmax(axis=1), earned.argmin(axis=1))
    rows = np.arange(len(winners))
    earned[rows, column] = np.where(has_slot, earned[rows, column], 0.0) + gains
    tokens[rows, column] = winners
    return tokens, earned


def make(options: CreditOptions, **context: Any) -> Credit:
    """Return the scorer."""
    return Credit(options)


METHOD = Method(
    kind="unmasker",
    part="scorer",
    name="credit",
    summary="Adds to the scores of tokens that have won their position in earlier steps.",
    source="CreditDecoding, arXiv:2510.06133, section 4",
    target="plait.decoders.diffusion.components.credit:make",
    options=CreditOptions,
    needs=frozenset({"canvas"}),
    excludes=frozenset({"d-parallel"}),  # few steps leave no history to give credit for
    presets={
        "paper": {"weight": 0.65, "fade": 0.7, "power": 0.2},
        "dinfer": {"weight": 0.7, "fade": 0.8, "power": 0.2},
        "tuning-free": {"schedule": "settled_share"},
    },
)
