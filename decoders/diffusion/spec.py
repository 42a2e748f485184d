"""What a diffusion model's weights were trained for. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attention = Literal["block", "full"]


@dataclass(frozen=True, slots=True)
class DiffusionSpec:
    """How a masked diffusion model is fed, and which options a request has."""

    mask_id: int  # token id fed at masked positions; in a prompt it is a token like any other
    eos_ids: tuple[int, ...]
    attention: Attention  # block: a block sees itself and everything before it; full: everything
    block_size: int  # full attention: positions that are unmasked before the next ones
    block_sizes: tuple[int, ...] = ()  # what a request may choose; empty: block_size alone
    also_full: bool = False  # trained for both: a request may choose full attention
    shift: bool = False  # row i predicts token i + 1, as in autoregressive models
    canvas: int = 128  # full attention: at most so many output positions at a time

    def serves(self, attention: Attention) -> bool:
        """Return whether a request may choose this attention."""
        return attention == self.attention or (attention == "full" and self.also_full)
