"""FreeDave: try the canvases ahead in the same forward pass, and keep those that prove right.

The certain canvas is fed together with copies in which 1, 2, .. more of its holes are filled, in
the order of the selector's scores. What the selector then makes of a canvas either equals the next
draft, whose logits are there already, or ends the walk (decoders/diffusion/drafts.py). Law: the
tokens, and the step in which each is settled, are those of the selector without drafts, for any
deterministic step map; the forward passes are never more.

Source: FreeDave, arXiv:2510.00294, algorithm 1. Departures: drafts are compared by equality of
canvases, not by inclusion, so that every selector keeps its own steps; the width also depends on
the rows that the step has left; drafts stay within the block, while the paper's eager mode reaches
into the next ones; noise is a function of its key, so it holds while sampling too. The width is
LLaDA's, the least of the published ones, since a processor has no rows for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Method, Options


class FreeDaveOptions(Options):
    """How far to look ahead."""

    width: int = Field(default=4, ge=1, le=64)  # canvases fed at most, the certain one among them


@dataclass(frozen=True, slots=True)
class FreeDave:
    """Says how many canvases fit."""

    options: FreeDaveOptions

    def width(self, holes: int, rows: int, room: int) -> int:
        """Return how many canvases to feed; a draft with no hole left would tell nothing."""
        return max(1, min(self.options.width, holes, 1 + room // max(rows, 1)))


def make(options: FreeDaveOptions, **context: Any) -> FreeDave:
    """Return the verifier."""
    return FreeDave(options)


METHOD = Method(
    kind="unmasker",
    part="verifier",
    name="free-dave",
    summary="Feeds likely next canvases as well and keeps those that prove right: lossless.",
    source="FreeDave, arXiv:2510.00294, algorithm 1",
    target="plait.decoders.diffusion.components.free_dave:make",
    options=FreeDaveOptions,
    needs=frozenset({"canvas"}),
    # Branches can't be written in place, nor shadowed.
    excludes=frozenset({"wino", "prefix-cache", "dual-cache", "dkv-cache", "recap"}),
    presets={"llada": {"width": 4}, "dream": {"width": 8}, "sdar": {"width": 8}},
)
