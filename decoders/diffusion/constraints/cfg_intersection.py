"""CFG intersection: unmasks any token with which the answer's gaps can still be filled.

The unmasked tokens of a canvas and those that a step selects are fragments, with gaps of masked
positions between them. They may stand together if some filling of the gaps gives a text of the
constraint's language: `Constraint.fill_gaps` decides that by intersecting the grammar with the
texts of this form. So a token far from the prefix is judged by itself, not by what is drawn in
front of it. intersection.py does the work.
"""

from __future__ import annotations

from pydantic import Field

from plait.decoders.contract.registry import Method, Options


class CfgIntersectionOptions(Options):
    """How hard a step tries to unmask what was selected."""

    # The paper redraws 100 times in an answer; a step here goes on at other positions.
    redraws: int = Field(default=4, ge=0, le=100)  # of refused tokens, in one step


METHOD = Method(
    kind="unmasker",
    part="constraint",
    name="cfg-intersection",
    summary="Unmasks under a constraint what leaves gaps that its grammar can fill.",
    source="Mündler et al., arXiv:2508.10111, section 4",
    target="plait.decoders.diffusion.constraints.intersection:make",
    options=CfgIntersectionOptions,
    needs=frozenset({"canvas"}),
)
