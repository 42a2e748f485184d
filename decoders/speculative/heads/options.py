"""Options of the trained draft heads. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plait.decoders.speculative.config import DraftOptions


class HeadOptions(DraftOptions):
    """The shape of the draft trees."""

    depth: int = Field(3, ge=1, le=16, description="Depth of the tree: steps of the head.")
    beam: int = Field(1, ge=1, le=16, description="Nodes of each depth that are extended.")
    width: int = Field(2, ge=1, le=16, description="Children of each extended node.")
    confidence: float = Field(
        0.25, ge=0.0, lt=1.0, description="Path probability below which a node is not extended."
    )
    weights: Literal["fp32", "int8"] = Field("int8", description="Weights of the head's matrices.")
