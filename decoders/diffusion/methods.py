"""The unmasking methods that are built in: one file each, listed here. No torch."""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.diffusion.components import (
    ada_block,
    credit,
    dkv_cache,
    dual_cache,
    eotp,
    free_dave,
    prefix_cache,
    recap,
    scaffold,
)
from plait.decoders.diffusion.constraints import cfg_intersection, dingo, lookahead, marginal
from plait.decoders.diffusion.selectors import (
    d_parallel,
    dynamic,
    entropy_bound,
    factor,
    hierarchy,
    klass,
    learn2pd,
    local_leap,
    random_order,
    static,
    threshold,
    wino,
)

SELECTORS: tuple[Method, ...] = tuple(
    module.METHOD
    for module in (
        static,
        random_order,
        threshold,
        dynamic,
        factor,
        entropy_bound,
        d_parallel,
        local_leap,
        hierarchy,
        klass,
        learn2pd,
        wino,
    )
)
PARTS: tuple[Method, ...] = tuple(
    module.METHOD
    for module in (
        credit,
        ada_block,
        eotp,
        free_dave,
        prefix_cache,
        dual_cache,
        dkv_cache,
        recap,
        scaffold,
        lookahead,
        cfg_intersection,
        dingo,
        marginal,
    )
)
METHODS: tuple[Method, ...] = SELECTORS + PARTS
