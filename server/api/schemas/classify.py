"""Requests of /v1/classify: what to classify, the classes with their label words, the templates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from plait.server.api.schemas.base import INTEGRAL, FailFastList, exactly_one_of
from plait.server.api.schemas.generation import RoutingFields

PLACE = "{input}"  # in a template: where the input stands
Combine = Literal["mean", "sum", "max"]
Match = Literal["template", "transport"]
Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[FailFastList[Text], Field(min_length=1)]
Inputs = Annotated[FailFastList[str], Field(min_length=1)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")]


class ScoringFields(RoutingFields):
    """What requests that read prompts, and write nothing, share."""

    deadline_ms: Annotated[int, Field(ge=1, le=24 * 3600 * 1000), INTEGRAL] | None = Field(
        None, description="From arrival to the last score."
    )


class ClassifyRequest(ScoringFields):
    """Texts to be classified by what a model would write behind them."""

    model_config = exactly_one_of("template", "prototypes")

    input: str | Inputs = Field(description="A text, or several, each of which is classified.")
    classes: Annotated[dict[ClassName, Text | Texts], Field(min_length=2)] | None = Field(
        None,
        description="The label words of each class: texts that stand behind a template, as they "
        "are written there, with a space in front where one belongs. Needed without prototypes.",
    )
    template: Text | Texts | None = Field(
        None,
        description="A prompt, or several, in which {input} stands for the input; the label words "
        "stand at its end. Special tokens are written out. Prototypes have their own.",
    )
    prototypes: SetName | None = Field(
        None,
        description="The name of prototypes to be compared with. With classes, the scores of the "
        "label words are added.",
    )
    match: Match | None = Field(
        None,
        description="Which prototypes of a class an input is compared with: those of the same "
        "template (the default), or all, weighted by a transport plan. Needs prototypes.",
    )
    beta: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None,
        description="Weight of the label words beside prototypes. One over the examples of the "
        "smallest class, unless given.",
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
    trace: bool | None = Field(
        None, description="Add the scores of each template, of each word in it, and of prototypes."
    )

    @property
    def inputs(self) -> list[str]:
        """The inputs, as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def words(self) -> dict[str, list[str]]:
        """The label words of each class, as lists; empty without classes."""
        classes = (self.classes or {}).items()
        return {name: [words] if isinstance(words, str) else words for name, words in classes}


class TrainRequest(ScoringFields):
    """Labelled examples of which prototypes are made."""

    name: SetName = Field(description="Of the prototypes; equal names replace each other.")
    examples: Annotated[dict[ClassName, Texts], Field(min_length=2)] = Field(
        description="Texts of each class."
    )
    template: Text | Texts = Field(
        description="A prompt, or several, in which {input} stands for the example."
    )
