"""The request of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from plait.server.api.schemas.base import (
    INTEGRAL,
    FailFastList,
    Logprobs,
    Metadata,
    ShortString,
    StrictModel,
    Unsupported,
)
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.api.schemas.response_format import ResponseFormat

_TOOLS = "tools are not implemented yet"
_THINKING = "templates that know of thinking take it from chat_template_kwargs"
_TEXT = "this server reads and writes text"
_CACHED = "known prefixes are cached without being asked; leave it out"
_ROLES_OF_TOOLS = ("tool", "function")
_OPENAI_ROLES = ("system", "developer", "user", "assistant", *_ROLES_OF_TOOLS)
# By field name: values that OpenAI or others have, and why they are not supported.
UNSUPPORTED_VALUES: dict[str, dict[str, str]] = {
    "type": {
        **dict.fromkeys(("image_url", "image", "input_image", "image_embeds"), _TEXT),
        **dict.fromkeys(("input_audio", "audio_url", "audio"), _TEXT),
        **dict.fromkeys(("video_url", "video", "file", "input_file"), _TEXT),
        **dict.fromkeys(("tool_use", "tool_result", "tool_call"), _TOOLS),
        **dict.fromkeys(("thinking", "reasoning"), "send it as reasoning_content"),
        **dict.fromkeys(("regex", "grammar", "choice"), "structured_outputs takes it"),
        "json": "say json_schema",
        "structural_tag": "structured_outputs takes a grammar in its place",
    },
}


class TextPart(StrictModel):
    """A text part of a message."""

    type: Literal["text"]
    text: str
    cache_control: Annotated[Any, Unsupported(_CACHED)] = None


class RefusalPart(StrictModel):
    """An assistant's earlier refusal; read as text."""

    type: Literal["refusal"]
    refusal: str


AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class MessageBase(StrictModel):
    """The fields of messages of every role."""

    name: ShortString | None = Field(
        None, description="Left out where the template writes no names."
    )
    cache_control: Annotated[Any, Unsupported(_CACHED)] = None


class InstructionMessage(MessageBase):
    """A message of the developer."""

    role: Literal["system", "developer"]
    content: str | Annotated[FailFastList[TextPart], Field(min_length=1)]


class UserMessage(MessageBase):
    """A message of the user."""

    role: Literal["user"]
    content: str | Annotated[FailFastList[TextPart], Field(min_length=1)]


class AssistantMessage(MessageBase):
    """A message of the model; a message of an earlier response can be sent back unchanged."""

    role: Literal["assistant"]
    content: str | Annotated[FailFastList[AssistantPart], Field(min_length=1)] | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(
        None, description="What the model thought; left out where the template writes no thoughts."
    )
    reasoning: str | None = Field(None, description="The same under OpenRouter's and vLLM's name.")
    annotations: Annotated[Any, Unsupported("no search is done", unless=([],))] = None
    audio: Annotated[Any, Unsupported(_TEXT)] = None
    function_call: Annotated[Any, Unsupported(_TOOLS)] = None
    tool_calls: Annotated[Any, Unsupported(_TOOLS, unless=([],))] = None


def _is_custom(role: str) -> str:
    if role in _ROLES_OF_TOOLS:
        raise PydanticCustomError(
            "unsupported_parameter",
            "The role {role} is not supported: {why}",
            {"role": role, "why": _TOOLS},
        )
    return role


class CustomMessage(MessageBase):
    """A message of another role that the model's chat template renders."""

    role: Annotated[
        str,
        StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$"),
        AfterValidator(_is_custom),
        Field(json_schema_extra={"not": {"enum": [*_OPENAI_ROLES]}}),
    ]
    content: str | Annotated[FailFastList[TextPart], Field(min_length=1)]


def role(message: Any) -> str | None:
    """Return the union tag of a message, None if it has no role.

    pydantic reports a missing role under this function's name.
    """
    is_read = isinstance(message, dict)  # else a message that is serialized
    given = message.get("role") if is_read else getattr(message, "role", "")
    return None if given is None else _KINDS.get(str(given), "custom")


_KINDS = {
    "system": "instruction",
    "developer": "instruction",
    "user": "user",
    "assistant": "assistant",
}
Message = Annotated[
    Annotated[InstructionMessage, Tag("instruction")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[CustomMessage, Tag("custom")],
    Discriminator(role),
]


class Prediction(StrictModel):
    """The expected output. It makes matching output faster and changes no token."""

    type: Literal["content"]
    content: str | Annotated[FailFastList[TextPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The expected output."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """A conversation to continue."""

    id_prefix: ClassVar[str] = "chatcmpl"
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[FailFastList[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=-1, lt=2**31), INTEGRAL] | None = Field(
        None, description="Wins over max_tokens. -1, the default: what the context leaves."
    )
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = Field(
        None, description="Needs logprobs=true. -1: as many as the server gives."
    )
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
    safety_identifier: ShortString | None = Field(None, description="Noted in the access log.")
    prompt_cache_key: ShortString | None = Field(
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
    def max_tokens_field(self) -> str:
        """The field that says how many tokens to generate at most."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def output_format(self) -> ResponseFormat | None:
        """What the output must look like, beside structured_outputs."""
        return self.response_format

    @property
    def predicted_text(self) -> str | None:
        """The output that the client expects."""
        return None if self.prediction is None else self.prediction.text

    @property
    def affinity(self) -> str:
        """Requests that share it are sent to the same replica when load allows."""
        return self.prompt_cache_key or ""

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives reported per output token; None for no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
