"""FreeDave: computes the likely next canvases in the same forward pass and keeps those that match.

The current canvas is fed together with draft canvases in which 1, 2, .. more of its positions are
filled, in the order of the selector's scores. If the step on a canvas gives exactly the next draft,
whose logits are there already, the next step uses them; otherwise verification ends
(decoders/diffusion/propose.py). Law: the tokens, and the step in which each is unmasked, are those
of the selector without drafts, for any deterministic step; there are never more forward passes.

Source: FreeDave, arXiv:2510.00294, algorithm 1. Differences: drafts are compared by equality of
canvases, not by inclusion, so that every selector keeps its own steps; the width also depends on
the rows that the step has left; drafts stay within the block, while the paper's eager mode reaches
into the next ones; noise is a function of its key, so it also holds while sampling. The width is
LLaDA's, the least of the published ones, because additional rows are not free on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Method, Options


class FreeDaveOptions(Options):
    """How many canvases to feed."""

    width: int = Field(default=4, ge=1, le=64)  # canvases fed at most, the current one included


@dataclass(frozen=True, slots=True)
class FreeDave:
    """Decides how many canvases to feed."""

    options: FreeDaveOptions

    def width(self, num_positions: int, num_rows: int, budget: int) -> int:
        """Return how many canvases to feed; a draft without a mask has nothing to predict."""
        return max(1, min(self.options.width, num_positions, 1 + budget // max(num_rows, 1)))


def make(options: FreeDaveOptions, **context: Any) -> FreeDave:
    """Return the verifier."""
    return FreeDave(options)


METHOD = Method(
    kind="unmasker",
    part="verifier",
    name="free-dave",
    summary="Also feeds the likely next canvases and keeps those that match: lossless.",
    source="FreeDave, arXiv:2510.00294, algorithm 1",
    target="plait.decoders.diffusion.components.free_dave:make",
    options=FreeDaveOptions,
    needs=frozenset({"canvas"}),
    # Branches can't be written in place, nor have a leave-one-out view.
    excludes=frozenset({"wino", "prefix-cache", "dual-cache", "dkv-cache", "recap"}),
    presets={"llada": {"width": 4}, "dream": {"width": 8}, "sdar": {"width": 8}},
)
