"""dKV-Cache: a token's keys and values are kept from the step after it was settled.

They move most when a mask becomes text, so what the last step settled is computed once more. Law:
every `refresh` passes compute all positions; the others all holes and what the last step settled.
The greedy variant leaves the holes behind the block out, but for `radius` positions around what it
computes. refresh = 1 is decoding without a cache.

Source: dKV-Cache, arXiv:2505.15781, section 4 (decode and greedy). Departure: the greedy variant
there fixes the order beforehand and computes one hole a step; here it keeps the block's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import CacheView, Ints


class DkvCacheOptions(Options):
    """How often all is computed, and what is between."""

    refresh: int = Field(default=8, ge=1)  # passes from one of all positions to the next
    variant: Literal["decode", "greedy"] = "decode"
    radius: int = Field(default=4, ge=0)  # positions; greedy only


@dataclass(frozen=True, slots=True)
class DkvCache:
    """Computes holes and what has just been settled."""

    options: DkvCacheOptions

    def rows(self, view: CacheView) -> Ints:
        """Return all positions when they are due, else those that move."""
        if view.age % self.options.refresh == 0:
            return np.arange(view.length)
        active = np.union1d(view.holes, view.fresh)
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
    summary="Computes holes and what has just been settled, and everything now and then.",
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
