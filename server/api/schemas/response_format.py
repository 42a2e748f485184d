"""Structured output: OpenAI's response_format and vLLM's structured_outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from plait.decoders.constrained.spec import Formats, KeyOrder, Objects, Untyped, Whitespace
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


PublicNumbers = Literal["plain", "any"]


class JsonOptions(StrictModel):
    """How JSON is written where its schema leaves that open."""

    whitespace: Whitespace | None = Field(
        None,
        description="pretty: as pretty printers do; compact: none; spaced: one blank after each "
        "comma and colon; any: around every token.",
    )
    objects: Objects | None = Field(
        None,
        description="open: objects may have properties that their schema neither names nor "
        "forbids, none twice; closed: they may not.",
    )
    key_order: KeyOrder | None = Field(
        None, description="schema: properties come in the schema's order; any: in any."
    )
    untyped: Untyped | None = Field(
        None,
        description="A schema without type is, described: of the types that its keywords speak "
        "of; any: of every type, as the standard has it.",
    )
    formats: Formats | None = Field(
        None,
        description="assert: all formats that are known are enforced; standard: those of JSON "
        "Schema itself; annotate: none.",
    )
    numbers: PublicNumbers | None = Field(
        None,
        description="plain: shortest; any: with zeros at their end, as in 1.0, and with an "
        "exponent where there are bounds, too.",
    )


class StructuredOutputs(StrictModel):
    """What the answer must match: exactly one of the four (vLLM's names), or response_format's."""

    model_config = exactly_one_of("json", "regex", "choice", "grammar", unless="options")

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Annotated[FailFastList[str], Field(min_length=1)] | None = None
    grammar: str | None = Field(None, description="EBNF; the first rule is `root`.")
    options: JsonOptions | None = Field(None, description="Of JSON, response_format's as well.")
