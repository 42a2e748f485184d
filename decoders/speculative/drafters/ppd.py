"""PPD, parallel prompt decoding: trained inputs behind a text make the model itself guess ahead.

m prompt embeddings, fed where the next tokens would stand, give the laws of the tokens behind them;
their keys and values are never kept. A tree of such guesses is fed, with prompts of its own behind
its nodes, so that whichever node is accepted last, there are guesses for the next step. Prompts
are rows like drafts: each says what it is worth (heads/prompt_trees.py), and the budget keeps those
that pay. What is computed stands in heads/prompting.py.

Law: none of its own; verified as every draft.
Source: PPD, arXiv:2405.18628; e = 1 embedding a place. Its typical acceptance gives way to the
verifier's exact one. Its trees hold up to 285 rows on a GPU; here `length` rows, 0 being what the
measured costs of a pass make best, and 64 at most.
"""

from __future__ import annotations

from pydantic import Field

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, DraftOptions


class PpdOptions(DraftOptions):
    """The size of the trees."""

    length: int = Field(
        0, ge=0, le=MAX_DRAFT, description="Rows of a tree, prompts included; 0: by measured cost."
    )


METHOD = Method(
    kind="drafter",
    name="ppd",
    summary="Guesses that the model makes at trained inputs behind the text.",
    source="PPD, arXiv:2405.18628",
    target="plait.decoders.speculative.heads.ppd:make",
    options=PpdOptions,
    needs=frozenset({"tree", "ppd"}),
    presets={"published": {"length": MAX_DRAFT, "max_draft": MAX_DRAFT}},
)
