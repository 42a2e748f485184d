"""ReCAP: between full passes, only the positions likely to be unmasked next are computed.

Passes come in groups: one of all positions, then `local` ones of the `active` most confident masked
positions of the block and of what the last step unmasked. Only positions that were computed can be
unmasked. Law: with local = 0 there is no cache, and each pass computes at least one masked
position.

Source: ReCAP, arXiv:2505.19089, section 4, for masked image generators. Differences, because text
has no fixed number of steps: the set is chosen again for each local pass, by the probabilities that
were last computed, and what was just unmasked is computed once more (dKV-Cache). `full_first`
counts passes, where the paper's early passes, 12 of 32, are full; it is 0, because a prompt leaves
less uncertainty than an empty image. `active` is an addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import CacheView, Ints, top_k


class RecapOptions(Options):
    """How many passes are local, and how many positions they compute."""

    local: int = Field(default=1, ge=0)  # local passes after each full pass
    active: int = Field(default=8, ge=1)  # masked positions
    full_first: int = Field(default=0, ge=0)  # full passes at a block's start


@dataclass(frozen=True, slots=True)
class Recap:
    """Computes a scattered set of masked positions."""

    options: RecapOptions

    def active_positions(self, view: CacheView) -> Ints:
        """Return all positions at a group's start, then those of the active set."""
        is_early = view.step < self.options.full_first
        if view.passes_since_refresh % (self.options.local + 1) == 0 or is_early:
            return np.arange(view.length)
        return np.union1d(view.positions[top_k(view.p, self.options.active)], view.newly_unmasked)


def make(options: RecapOptions, **context: Any) -> Recap:
    """Return the cache policy."""
    return Recap(options)


METHOD = Method(
    kind="unmasker",
    part="cache",
    name="recap",
    summary="Between full passes computes only the positions likely to be unmasked next.",
    source="ReCAP, arXiv:2505.19089, section 4",
    target="plait.decoders.diffusion.components.recap:make",
    options=RecapOptions,
    needs=frozenset({"canvas", "full_attention"}),
    presets={"alternating": {"local": 1, "active": 8}},
)
