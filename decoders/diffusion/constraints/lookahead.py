"""Lookahead: unmasks what the constraint accepts from the left, through the tokens drawn so far.

The default for constrained answers; canvas_constraint.py and prefix_matcher.py say what it does.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method

METHOD = Method(
    kind="unmasker",
    part="constraint",
    name="lookahead",
    summary="Unmasks under a constraint what it accepts from the left, through the drawn tokens.",
    source="LAVE, arXiv:2602.00612",
    target="plait.decoders.diffusion.constraints.canvas_constraint:make_lookahead",
    needs=frozenset({"canvas"}),
)
