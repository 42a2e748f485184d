"""DINGO: the most probable tokens of a block that a finite automaton accepts together.

All masked positions of a block get the tokens of the text with the highest product of
probabilities among those that the constraint accepts (posterior.py). Any of them may be unmasked,
as they stand in one accepted text. At a temperature the probabilities are perturbed as for a draw,
so that without a constraint each position's token is its ordinary draw. regular.py does the work.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method

METHOD = Method(
    kind="unmasker",
    part="constraint",
    name="dingo",
    summary="Takes the most probable tokens that a finite automaton accepts together.",
    source="DINGO, arXiv:2505.23061, section 4",
    target="plait.decoders.diffusion.constraints.regular:make_dingo",
    needs=frozenset({"canvas"}),
    excludes=frozenset({"scaffold"}),  # no token is forced: there are no literals to place
)
