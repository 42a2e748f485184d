"""PrefixCache: within a block, the positions before it are not computed again.

Law: a block's first pass computes all positions, the others those from the block's start on. The
keys and values before the block are then those of a canvas with more masks: approximate.

Source: Fast-dLLM, arXiv:2505.22618, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import CacheView, Ints


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Computes the block and what follows it."""

    def active_positions(self, view: CacheView) -> Ints:
        """Return all positions for a block's first pass, then those from its start on."""
        return np.arange(view.start if view.step else 0, view.length)


def make(options: Options, **context: Any) -> PrefixCache:
    """Return the cache policy."""
    return PrefixCache()


METHOD = Method(
    kind="unmasker",
    part="cache",
    name="prefix-cache",
    summary="Keeps keys and values before a block while the block is decoded.",
    source="Fast-dLLM, arXiv:2505.22618, section 3.2",
    target="plait.decoders.diffusion.components.prefix_cache:make",
    needs=frozenset({"canvas", "full_attention"}),
)
