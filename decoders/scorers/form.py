"""form: whether a text is of a form, a JSON schema or a regular expression, or may become one.

The form is compiled as constraints are, but it constrains nothing: a text that leaves it scores
less. Of JSON, any spelling is right, and `format` is enforced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from plait.decoders.contract.registry import Method
from plait.decoders.contract.scorer import ScoredText, ScorerContext, ScorerOptions


class FormOptions(ScorerOptions):
    """Options of form."""

    json_schema: dict[str, Any] | None = Field(default=None, description="of the whole text")
    regex: str | None = Field(default=None, description="that the whole text matches")

    @model_validator(mode="after")
    def _one_form(self) -> FormOptions:
        if (self.json_schema is None) == (self.regex is None):
            raise ValueError("give json_schema or regex, one of them")
        return self

    @property
    def form(self) -> tuple[Literal["json_schema", "regex"], str]:
        """The kind of the form, and its text."""
        if self.json_schema is not None:
            return "json_schema", json.dumps(self.json_schema)
        return "regex", self.regex or ""


class Form:
    """1 for a text of the form, or for the beginning of one while the text goes on.

    Otherwise half the share of the text in front of the first fault; 0.5 for a text that has ended
    too early. Cost: linear in the text.
    """

    def __init__(self, options: FormOptions, context: ScorerContext) -> None:
        assert context.check_form is not None, "the front end compiles forms"
        self._check = context.check_form

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        """Return a number from 0 to 1 for each text."""
        return [self._score(each) for each in texts]

    def _score(self, text: ScoredText) -> float:
        data = text.text.encode()
        length, is_whole = self._check(data)
        if length == len(data) and (is_whole or not text.is_complete):
            return 1.0
        return 0.5 * length / len(data) if data else 0.5


METHOD = Method(
    kind="scorer",
    name="form",
    summary="Whether the text is, or may become, of a JSON schema or a regular expression.",
    source="",
    target="plait.decoders.scorers.form:Form",
    options=FormOptions,
)
