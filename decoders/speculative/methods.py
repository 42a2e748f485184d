"""The drafters that are built in: one file each, listed here. No torch."""

from __future__ import annotations

from plait.decoders.registry import Method
from plait.decoders.speculative.drafters import (
    draft_model,
    forced,
    jacobi,
    n_gram,
    pearl,
    prediction,
    suffix,
)

METHODS: tuple[Method, ...] = tuple(
    module.METHOD for module in (draft_model, forced, jacobi, n_gram, pearl, prediction, suffix)
)
