"""Requests of /v1/classify: what to classify, the classes with their label words, the templates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from plait.server.api.schemas.base import INTEGRAL, FailFastList
from plait.server.api.schemas.generation import RoutingFields

PLACE = "{input}"  # in a template: where the input stands
Combine = Literal["mean", "sum", "max"]
Word = Annotated[str, StringConstraints(min_length=1)]
Words = Annotated[FailFastList[Word], Field(min_length=1)]
Template = Annotated[str, StringConstraints(min_length=1)]
Templates = Annotated[FailFastList[Template], Field(min_length=1)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ClassifyRequest(RoutingFields):
    """Texts to be classified by what a model would write behind them."""

    input: str | Annotated[FailFastList[str], Field(min_length=1)] = Field(
        description="A text, or several, each of which is classified."
    )
    classes: Annotated[dict[ClassName, Word | Words], Field(min_length=2)] = Field(
        description="The label words of each class: texts that stand behind a template, as they "
        "are written there, with a space in front where one belongs."
    )
    template: Template | Templates = Field(
        description="A prompt, or several, in which {input} stands for the input; the label words "
        "stand at its end. Special tokens are written out."
    )
    calibrate: bool | None = Field(
        None,
        description="Subtract from each score what the template with an empty input gives. On "
        "unless false.",
    )
    combine: Combine | None = Field(
        None,
        description="What a class gets of its words' log-probabilities: their mean (the default), "
        "the log of the sum of the probabilities, or the greatest.",
    )
    deadline_ms: Annotated[int, Field(ge=1, le=24 * 3600 * 1000), INTEGRAL] | None = Field(
        None, description="From arrival to the last score."
    )
    trace: bool | None = Field(
        None, description="Add the scores of each template, and of each word in it."
    )

    @property
    def inputs(self) -> list[str]:
        """The inputs, as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def templates(self) -> list[str]:
        """The templates, as a list."""
        return [self.template] if isinstance(self.template, str) else self.template

    @property
    def words(self) -> dict[str, list[str]]:
        """The label words of each class, as lists."""
        classes = self.classes.items()
        return {name: [words] if isinstance(words, str) else words for name, words in classes}
