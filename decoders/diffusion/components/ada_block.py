"""AdaBlock: a block ends where the text's next section is about to end.

When a block begins, the model's tokens for the positions ahead are looked at. Law: of those whose
token is a delimiter the surest is taken, and if its p >= threshold the block ends with it; else the
block has its usual size. Without a delimiter ahead this is decoding in fixed blocks.

Source: AdaBlock-dLLM, arXiv:2509.26432, section 4, algorithm 1. Departures: at least a usual block
is looked at, however short the answer's share; `floor` (1 in the paper) keeps blocks from getting
shorter than that. Delimiters are the tokens whose text holds a line break, unless they are named.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.diffusion.protocols import Ints, StepView
from plait.decoders.diffusion.spec import DiffusionSpec

FALLBACK = 32  # usual size of a block where no model says


class AdaBlockOptions(Options):
    """How sure a delimiter must be, how far to look, and how long a block is."""

    threshold: float = Field(default=0.3, ge=0.0, le=2.0)
    share: float = Field(default=0.25, gt=0.0, le=1.0)  # of the answer's positions, looked at
    block_size: int | None = Field(default=None, ge=1)  # None: the canvas's own
    floor: int = Field(default=1, ge=1)
    delimiter_ids: tuple[int, ...] = ()  # empty: tokens that hold a line break


@dataclass(frozen=True, slots=True)
class AdaBlock:
    """Says where blocks end."""

    options: AdaBlockOptions
    block_size: int
    delimiters: Ints

    def reach(self, remaining: int, answer: int) -> int:
        """Return how many positions to look ahead."""
        return min(max(int(self.options.share * answer), self.block_size), remaining)

    def length(self, view: StepView) -> int:
        """Return the length of the block that begins at view.start."""
        usual = min(self.block_size, view.stop - view.start)
        ends = np.isin(view.tokens, self.delimiters)
        ends &= view.holes - view.start + 1 >= self.options.floor
        if not ends.any():
            return usual
        surest = int(np.argmax(np.where(ends, view.p, -1.0)))
        if view.p[surest] < self.options.threshold:
            return usual
        return int(view.holes[surest]) - view.start + 1


def make(
    options: AdaBlockOptions,
    *,
    spec: DiffusionSpec | None = None,
    block_size: int | None = None,
    delimiters: Collection[int] = (),
    **context: Any,
) -> AdaBlock:
    """Return the window policy.

    Raises:
        MethodError: nobody knows the model's delimiters.
    """
    ids = options.delimiter_ids or tuple(delimiters)
    if not ids:
        raise MethodError(
            "ada-block knows no delimiters of this model; name delimiter_ids.", "decoding.unmasker"
        )
    own = spec.block_size if spec is not None else FALLBACK
    size = options.block_size or block_size or own
    return AdaBlock(options, size, np.array(sorted(ids), dtype=np.int64))


METHOD = Method(
    kind="unmasker",
    part="window",
    name="ada-block",
    summary="Ends a block at the delimiter that the model is surest of.",
    source="AdaBlock-dLLM, arXiv:2509.26432, algorithm 1",
    target="plait.decoders.diffusion.components.ada_block:make",
    options=AdaBlockOptions,
    needs=frozenset({"canvas"}),
    presets={
        "llada": {"threshold": 0.3},
        "dream": {"threshold": 0.5},
        "floored": {"threshold": 0.3, "floor": 4},
    },
)
