"""What a diffusion model's weights were trained for. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attention = Literal["block", "full"]


@dataclass(frozen=True, slots=True)
class DiffusionSpec:
    """How a masked diffusion model is to be fed, and what may be asked of it."""

    mask_id: int  # stands where a token is missing; as text it is a token like any other
    eos_ids: tuple[int, ...]
    attention: Attention  # block: a block sees itself and what is before it; full: everything
    block_size: int  # full attention: of the blocks that are settled one after the other
    block_sizes: tuple[int, ...] = ()  # what a request may choose; empty: block_size alone
    also_full: bool = False  # trained for both: a request may choose full attention
    shift: bool = False  # row i predicts token i + 1, as in the autoregressive model it came from
    canvas: int = 128  # full attention: most positions answered at a time

    def serves(self, attention: Attention) -> bool:
        """Tell whether a request may choose this attention."""
        return attention == self.attention or (attention == "full" and self.also_full)
