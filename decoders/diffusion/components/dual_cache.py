"""DualCache: within a block, the positions before and behind it are not computed again.

Law: a block's first pass computes all positions, the others the block's own. Approximate, because
the keys and values outside the block are those of its first pass.

Source: Fast-dLLM, arXiv:2505.22618, section 3.2. `around` also recomputes that many positions on
either side (vicinity refresh: dInfer, arXiv:2510.08666; 16 there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import CacheView, Ints


class DualCacheOptions(Options):
    """How many neighbouring positions are computed with the block."""

    around: int = Field(default=0, ge=0)  # positions on either side


@dataclass(frozen=True, slots=True)
class DualCache:
    """Computes only the block."""

    options: DualCacheOptions

    def active_positions(self, view: CacheView) -> Ints:
        """Return all positions for a block's first pass, then the block's."""
        if view.step == 0:
            return np.arange(view.length)
        start = max(view.start - self.options.around, 0)
        return np.arange(start, min(view.stop + self.options.around, view.length))


def make(options: DualCacheOptions, **context: Any) -> DualCache:
    """Return the cache policy."""
    return DualCache(options)


METHOD = Method(
    kind="unmasker",
    part="cache",
    name="dual-cache",
    summary="Keeps keys and values before and behind a block while the block is decoded.",
    source="Fast-dLLM, arXiv:2505.22618, section 3.2",
    target="plait.decoders.diffusion.components.dual_cache:make",
    options=DualCacheOptions,
    needs=frozenset({"canvas", "full_attention"}),
    presets={"fast-dllm": {"around": 0}, "dinfer": {"around": 16}},
)
