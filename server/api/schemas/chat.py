"""The request of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from plait.server.api.schemas.common import (
    Count,
    GenerationRequest,
    Items,
    Metadata,
    Natural,
    Short,
    Strict,
    Unsupported,
)

_TOOLS = "tools are not implemented yet"
_THINKING = "templates that know of thinking take it from chat_template_kwargs"
_TEXT = "this server reads and writes text"


class TextPart(Strict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """A piece of an assistant's earlier refusal; read as text."""

    type: Literal["refusal"]
    refusal: str


AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class InstructionMessage(Strict):
    """What the developer says."""

    role: Literal["system", "developer"]
    content: str | Annotated[Items[TextPart], Field(min_length=1)]
    name: Short | None = None


class UserMessage(Strict):
    """What the user says."""

    role: Literal["user"]
    content: str | Annotated[Items[TextPart], Field(min_length=1)]
    name: Short | None = None


class AssistantMessage(Strict):
    """What the model said; a message of an earlier answer can be sent back as it came."""

    role: Literal["assistant"]
    content: str | Annotated[Items[AssistantPart], Field(min_length=1)] | None = None
    refusal: str | None = None
    name: Short | None = None
    annotations: Annotated[Any, Unsupported("no search is done", unless=([],))] = None
    audio: Annotated[Any, Unsupported(_TEXT)] = None
    function_call: Annotated[Any, Unsupported(_TOOLS)] = None
    tool_calls: Annotated[Any, Unsupported(_TOOLS, unless=([],))] = None


Message = Annotated[
    InstructionMessage | UserMessage | AssistantMessage, Field(discriminator="role")
]


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
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


class JsonSchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class Prediction(Strict):
    """What the answer will probably be; it comes faster where it is, and is the same either way."""

    type: Literal["content"]
    content: str | Annotated[Items[TextPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The predicted answer."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """A conversation to be continued."""

    messages: Annotated[Items[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = Field(
        None, description="Wins over max_tokens; default: what the context leaves."
    )
    logprobs: bool | None = None
    top_logprobs: Natural | None = Field(None, description="Needs logprobs=true.")
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Write on where the last message, an assistant's, ends."
    )
    echo: bool | None = Field(
        None, description="With continue_final_message: begin the answer with that message."
    )
    metadata: Metadata | None = Field(None, description="Returned with the answer.")
    safety_identifier: Short | None = Field(None, description="Noted in the access log.")
    prompt_cache_key: Short | None = Field(
        None, description="Requests that share it are sent to the same replica when load allows."
    )
    prompt_cache_retention: Literal["in_memory"] | None = None
    service_tier: Literal["auto", "default"] | None = None

    audio: Annotated[Any, Unsupported(_TEXT)] = None
    function_call: Annotated[Any, Unsupported(_TOOLS, unless=("none", "auto"))] = None
    functions: Annotated[Any, Unsupported(_TOOLS, unless=([],))] = None
    modalities: Annotated[Any, Unsupported(_TEXT, unless=(["text"],))] = None
    moderation: Annotated[Any, Unsupported("there is no moderation model")] = None
    parallel_tool_calls: Annotated[Any, Unsupported(_TOOLS, unless=(True, False))] = None
    prompt_cache_options: Annotated[
        Any, Unsupported("prefixes are cached without options", unless=({},))
    ] = None
    reasoning_effort: Annotated[Any, Unsupported(_THINKING, unless=("none",))] = None
    store: Annotated[Any, Unsupported("answers are not kept", unless=(False,))] = None
    tool_choice: Annotated[Any, Unsupported(_TOOLS, unless=("none", "auto"))] = None
    tools: Annotated[Any, Unsupported(_TOOLS, unless=([],))] = None
    verbosity: Annotated[Any, Unsupported("ask for it in a message", unless=("medium",))] = None
    web_search_options: Annotated[Any, Unsupported("no search is done")] = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives reported per token; None for no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
