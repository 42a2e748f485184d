"""PPD, parallel prompt decoding: trained prompt tokens make the target itself guess ahead.

m prompt tokens, fed at the positions of the next tokens, give distributions of the tokens behind
them; their keys and values are never cached. A tree of such guesses is fed, with prompt tokens
behind its nodes, so there are guesses for the next step whichever node is accepted last. Prompt
tokens are rows like draft tokens: each states its value (heads/prompt_trees.py), and the budget
keeps those that pay. The computation is in heads/ppd.py.

Law: none of its own; every draft is verified.
Source: PPD, arXiv:2405.18628; e = 1 embedding a position. Verification is exact instead of typical
acceptance. The paper's trees have up to 285 rows on a GPU; here `length` rows, at most 64; 0 takes
the best size for the measured cost of a pass.
"""

from __future__ import annotations

from pydantic import Field

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, DraftOptions


class PpdOptions(DraftOptions):
    """The size of the trees."""

    length: int = Field(
        0,
        ge=0,
        le=MAX_DRAFT,
        description="Rows of a tree, prompt tokens included; 0: by measured cost.",
    )


METHOD = Method(
    kind="drafter",
    name="ppd",
    summary="Guesses that the target makes at trained prompt tokens behind the text.",
    source="PPD, arXiv:2405.18628",
    target="plait.decoders.speculative.heads.ppd:make",
    options=PpdOptions,
    needs=frozenset({"tree", "ppd"}),
    presets={"published": {"length": MAX_DRAFT, "max_draft": MAX_DRAFT}},
)
