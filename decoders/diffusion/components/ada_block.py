"""AdaBlock: ends a block where the text's current section is about to end.

When a block begins, the model's tokens for the positions ahead are inspected. Law: of the positions
whose token is a delimiter the most confident is taken, and if its p >= threshold the block ends
with it; otherwise the block has its usual size. Without a delimiter ahead this is decoding in fixed
blocks.

Source: AdaBlock-dLLM, arXiv:2509.26432, section 4, algorithm 1. Differences: at least a usual block
is inspected, however short the output's share is; `floor` (1 in the paper) is the least length of a
block. Delimiters are the tokens whose text contains a line break, unless the request names them.
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

FALLBACK = 32  # block size where no model gives one


class AdaBlockOptions(Options):
    """The threshold of a delimiter, how far to look ahead, and how long a block is."""

    threshold: float = Field(default=0.3, ge=0.0, le=2.0)
    share: float = Field(default=0.25, gt=0.0, le=1.0)  # of the output's positions, inspected
    block_size: int | None = Field(default=None, ge=1)  # None: that of the canvas
    floor: int = Field(default=1, ge=1)
    delimiter_ids: tuple[int, ...] = ()  # empty: tokens that contain a line break


@dataclass(frozen=True, slots=True)
class AdaBlock:
    """Decides where blocks end."""

    options: AdaBlockOptions
    block_size: int
    delimiters: Ints

    def lookahead(self, remaining: int, output_length: int) -> int:
        """Return how many positions to inspect."""
        return min(max(int(self.options.share * output_length), self.block_size), remaining)

    def length(self, view: StepView) -> int:
        """Return the length of the block that begins at view.start."""
        usual = min(self.block_size, view.stop - view.start)
        ends = np.isin(view.tokens, self.delimiters)
        ends &= view.positions - view.start + 1 >= self.options.floor
        if not ends.any():
            return usual
        best = int(np.argmax(np.where(ends, view.p, -1.0)))
        if view.p[best] < self.options.threshold:
            return usual
        return int(view.positions[best]) - view.start + 1


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
        MethodError: the model's delimiters are not known.
    """
    ids = options.delimiter_ids or tuple(delimiters)
    if not ids:
        raise MethodError(
            "ada-block knows no delimiters of this model; name delimiter_ids.", "decoding.unmasker"
        )
    default = spec.block_size if spec is not None else FALLBACK
    size = options.block_size or block_size or default
    return AdaBlock(options, size, np.array(sorted(ids), dtype=np.int64))


METHOD = Method(
    kind="unmasker",
    part="window",
    name="ada-block",
    summary="Ends a block at the delimiter that the model is most confident of.",
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
