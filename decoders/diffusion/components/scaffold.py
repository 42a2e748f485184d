"""Scaffold: unmasks a schema's literal text before the values in front of it.

A lookahead through the drawn tokens passes the positions of a value and reaches one where the
grammar allows a single continuation: the next key, its quotes, a bracket. These literals are
unmasked at once, however probable the model considers them, if the value before them is likely to
have this length: the model then fills the rest of the value between text on both sides. Law: a
literal is unmasked when the product (or the minimum) of the probabilities of the tokens drawn at
the masked positions on its left is at least `bar`. A selector never selects a literal, so none
costs a pass. Both are functions of the canvas and of the draws, so drafts stay lossless.

A value that turns out to have another length remasks its literals when the constraint gets there;
nothing behind the first masked position was streamed. That happens only when the first masked
position has moved, which it does at most once per position, and every step unmasks a position: a
block of b positions ends within b * b steps.

Source: S3, Xiong et al. 2025, arXiv:2507.04504 (a schema's skeleton in the output as the first
canvas, values of a given length padded with null tokens). Difference: the skeleton is not laid out
beforehand with guessed lengths; it follows the lengths that are drawn, and the constraint
guarantees it, for any grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Bools, Floats


class ScaffoldOptions(Options):
    """The threshold on a value's probability."""

    bar: float = Field(default=0.5, ge=0.0, le=1.0)
    rule: Literal["product", "least"] = "product"


@dataclass(frozen=True, slots=True)
class LikelyLengths:
    """Unmasks literals behind values that are likely enough."""

    options: ScaffoldOptions

    def place(self, literal: Bools, p: Floats) -> Bools:
        """Return [m] which literals are unmasked; see the protocol."""
        probs = np.where(literal, 1.0, p)
        joint = np.multiply if self.options.rule == "product" else np.minimum
        placed: Bools = literal & (joint.accumulate(probs) >= self.options.bar)
        return placed


def make(options: ScaffoldOptions, **context: Any) -> LikelyLengths:
    """Return the scaffold."""
    return LikelyLengths(options)


METHOD = Method(
    kind="unmasker",
    part="scaffold",
    name="scaffold",
    summary="Unmasks a schema's literals where the values drawn so far would have them.",
    source="S3, arXiv:2507.04504",
    target="plait.decoders.diffusion.components.scaffold:make",
    options=ScaffoldOptions,
    needs=frozenset({"canvas"}),
    # One would remask what the other unmasks, without end.
    excludes=frozenset({"wino"}),
)
