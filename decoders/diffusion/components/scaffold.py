"""Scaffold: a schema's literal text is put where it will stand before the values are settled.

A walk through the tokens drawn passes the holes of a value and comes to where the grammar leaves
one continuation: the next key, its quotes, a bracket. These literals are settled there at once,
however probable the model thinks them, if the value before them is likely enough to have its
length: so the model fills the rest of the value between text on both sides. Law: a literal is
settled when the product (or the least) of the probabilities of the tokens drawn at the holes on its
left that are still open is at least `bar`; a selector never chooses one, so none takes a pass. Both
are functions of the canvas and of what is drawn on it, so drafts stay lossless.

A value that comes to another length opens its literals again when the frontier gets there; nothing
right of the frontier was streamed. That happens only when the frontier has moved, which it does at
most once a position, and every step settles a hole: a block of b positions ends in b * b steps.

Source: S3, Xiong et al. 2025, arXiv:2507.04504 (a schema's skeleton in the output as the first
canvas, values of a given length padded with null tokens). Departure: the skeleton is not laid out
beforehand with lengths that somebody guesses; it follows the lengths that are drawn, and the
constraint vouches for it, whatever grammar it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import Bools, Floats


class ScaffoldOptions(Options):
    """When a value's length is believed."""

    bar: float = Field(default=0.5, ge=0.0, le=1.0)
    rule: Literal["product", "least"] = "product"


@dataclass(frozen=True, slots=True)
class LikelyLengths:
    """Puts literals behind values that are likely enough."""

    options: ScaffoldOptions

    def place(self, literal: Bools, p: Floats) -> Bools:
        """Return which literals are settled."""
        own = np.where(literal, 1.0, p)
        joint = np.multiply if self.options.rule == "product" else np.minimum
        placed: Bools = literal & (joint.accumulate(own) >= self.options.bar)
        return placed


def make(options: ScaffoldOptions, **context: Any) -> LikelyLengths:
    """Return the scaffold."""
    return LikelyLengths(options)


METHOD = Method(
    kind="unmasker",
    part="scaffold",
    name="scaffold",
    summary="Puts a schema's literals where the values drawn so far would have them.",
    source="S3, arXiv:2507.04504",
    target="plait.decoders.diffusion.components.scaffold:make",
    options=ScaffoldOptions,
    needs=frozenset({"canvas"}),
    # What one opens again, the other would settle again, without end.
    excludes=frozenset({"wino"}),
)
