"""Marginal: an exact draw of a block's tokens from those that a finite automaton accepts.

The tokens of all masked positions are drawn together from the step's distribution given that the
constraint accepts them (posterior.py), and what a selector reads of a position, its probability
among them, are the marginals of that law, not those of the model alone. At temperature 0 the draw
is the best text. regular.py does the work.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method

METHOD = Method(
    kind="unmasker",
    part="constraint",
    name="marginal",
    summary="Draws tokens exactly from those that a finite automaton accepts together.",
    source="Dang and Ermon, arXiv:2607.07026",
    target="plait.decoders.diffusion.constraints.regular:make_marginal",
    needs=frozenset({"canvas"}),
    excludes=frozenset({"scaffold"}),  # no token is forced: there are no literals to place
)
