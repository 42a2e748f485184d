"""length: how near a text's length is to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from plait.decoders.contract.registry import Method
from plait.decoders.contract.scorer import ScoredText, ScorerContext, ScorerOptions


class LengthOptions(ScorerOptions):
    """Options of length."""

    least: int = Field(default=0, ge=0, le=2**20, description="shortest length that is right")
    most: int = Field(ge=1, le=2**20, description="longest length that is right")
    unit: Literal["characters", "words"] = Field(default="words", description="what is counted")

    @model_validator(mode="after")
    def _possible(self) -> LengthOptions:
        if self.least > self.most:
            raise ValueError("least is larger than most")
        return self


class Length:
    """1 from least to most, most / length above; below length / least, once a text has ended."""

    def __init__(self, options: LengthOptions, context: ScorerContext) -> None:
        self._options = options

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        """Return a number from 0 to 1 for each text."""
        return [self._score(each) for each in texts]

    def _score(self, text: ScoredText) -> float:
        options = self._options
        length = len(text.text) if options.unit == "characters" else len(text.text.split())
        if length > options.most:
            return options.most / length
        if length < options.least and text.is_complete:
            return length / options.least
        return 1.0


METHOD = Method(
    kind="scorer",
    name="length",
    summary="1 for a text of the right length, less the further it is off.",
    source="",
    target="plait.decoders.scorers.length:Length",
    options=LengthOptions,
)
