"""dKV-Cache: keeps a token's keys and values from the step after it was unmasked.

They change most when a mask becomes a token, so what the last step unmasked is computed once more.
Law: every `refresh` passes compute all positions; the others compute all masked positions and what
the last step unmasked. The greedy variant leaves out the masked positions behind the block, except
for `radius` positions around what it computes. refresh = 1 is decoding without a cache.

Source: dKV-Cache, arXiv:2505.15781, section 4 (decode and greedy). Difference: the greedy variant
of the paper fixes the order beforehand and computes one position per step; here the selector
decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import CacheView, Ints


class DkvCacheOptions(Options):
    """How often all positions are computed, and which ones in between."""

    refresh: int = Field(default=8, ge=1)  # passes from one full pass to the next
    variant: Literal["decode", "greedy"] = "decode"
    radius: int = Field(default=4, ge=0)  # positions; greedy only


@dataclass(frozen=True, slots=True)
class DkvCache:
    """Computes masked positions and what has just been unmasked."""

    options: DkvCacheOptions

    def active_positions(self, view: CacheView) -> Ints:
        """Return all positions when a full pass is due, otherwise those that change."""
        if view.passes_since_refresh % self.options.refresh == 0:
            return np.arange(view.length)
        active = np.union1d(view.positions, view.newly_unmasked)
        if self.options.variant == "decode":
            return np.union1d(active, np.arange(view.stop, view.length))
        steps = np.arange(-self.options.radius, self.options.radius + 1)
        around = np.unique(active[:, None] + steps[None, :])
        return around[(around >= 0) & (around < view.length)]


def make(options: DkvCacheOptions, **context: Any) -> DkvCache:
    """Return the cache policy."""
    return DkvCache(options)


METHOD = Method(
    kind="unmasker",
    part="cache",
    name="dkv-cache",
    summary="Computes masked and newly unmasked positions, and everything at intervals.",
    source="dKV-Cache, arXiv:2505.15781, section 4",
    target="plait.decoders.diffusion.components.dkv_cache:make",
    options=DkvCacheOptions,
    needs=frozenset({"canvas", "full_attention"}),
    presets={
        "llada": {"refresh": 8},
        "dream": {"refresh": 16},
        "greedy": {"refresh": 2, "variant": "greedy", "radius": 4},
    },
)
