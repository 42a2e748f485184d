"""Structured output: OpenAI's response_format and vLLM's structured_outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from plait.decoders.constrained.spec import Objects, Whitespace
from plait.server.api.schemas.base import FailFastList, StrictModel, exactly_one_of


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(StrictModel):
    """A schema by name."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="JSON Schema 2020-12; {} if absent."
    )
    strict: bool | None = Field(
        None,
        description="The schema is enforced either way. true also refuses schemas outside "
        "OpenAI's strict subset (all properties required, additionalProperties false).",
    )


class JsonSchemaFormat(StrictModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class JsonOptions(StrictModel):
    """How JSON is written where its schema leaves that open."""

    whitespace: Whitespace | None = Field(
        None,
        description="compact: none; spaced: one blank after each comma and colon; else as pretty "
        "printers do.",
    )
    objects: Objects | None = Field(
        None,
        description="open: objects may have properties that their schema neither names nor "
        "forbids, behind those that it names; closed: they may not.",
    )


class StructuredOutputs(StrictModel):
    """What the answer must match: exactly one of the four (vLLM's names), or response_format's."""

    model_config = exactly_one_of("json", "regex", "choice", "grammar", unless="options")

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Annotated[FailFastList[str], Field(min_length=1)] | None = None
    grammar: str | None = Field(None, description="EBNF; the first rule is `root`.")
    options: JsonOptions | None = Field(None, description="Of JSON, response_format's as well.")
