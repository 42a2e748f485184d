"""The built-in drafters, one module each. No torch."""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.drafters import (
    aded,
    chimera,
    draft_model,
    eagle,
    forced,
    jacobi,
    n_gram,
    pearl,
    ppd,
    prediction,
    suffix,
    superposed_tree,
)
from plait.decoders.speculative.lossy import lud, superposed, typical

METHODS: tuple[Method, ...] = tuple(
    module.METHOD
    for module in (
        aded,
        chimera,
        draft_model,
        eagle,
        forced,
        jacobi,
        n_gram,
        pearl,
        ppd,
        prediction,
        suffix,
        superposed_tree,
        lud,
        superposed,
        typical,
    )
)
