"""What a request may say of a draft head. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plait.decoders.speculative.config import DraftOptions


class HeadOptions(DraftOptions):
    """The shape of a head's trees."""

    depth: int = Field(3, ge=1, le=16, description="Steps of the head, one token further each.")
    beam: int = Field(1, ge=1, le=16, description="Nodes of each depth that are gone on from.")
    width: int = Field(2, ge=1, le=16, description="Guesses behind every such node.")
    confidence: float = Field(
        0.25, ge=0.0, lt=1.0, description="Chance of a path below which it is not gone on from."
    )
    weights: Literal["fp32", "int8"] = Field("int8", description="Mode of the head's matrices.")
