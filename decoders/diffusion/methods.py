"""The unmasking methods that are built in: one file each, listed here. No torch."""

from __future__ import annotations

from plait.decoders.diffusion.parts import free_dave
from plait.decoders.diffusion.selectors import static, threshold
from plait.decoders.registry import Method

METHODS: tuple[Method, ...] = tuple(
    module.METHOD
    for module in (
        static,
        threshold,
        free_dave,
    )
)
