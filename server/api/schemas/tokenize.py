"""Requests and responses of /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field

from plait.server.api.schemas.base import (
    FailFastList,
    ModelName,
    StrictModel,
    TokenId,
    exactly_one_of,
)
from plait.server.api.schemas.chat import Message


class TokenizeRequest(StrictModel):
    """A text, or a conversation, to be split into tokens; exactly one of the two."""

    model_config = exactly_one_of("prompt", "messages")

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
    prompt: str | None = None
    messages: Annotated[FailFastList[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = Field(
        None,
        description="Begin a prompt with the model's own begin token, where it has one. On unless "
        "false.",
    )
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeResponse(msgspec.Struct, frozen=True):
    """The tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(StrictModel):
    """Tokens to be joined to a text."""

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
    tokens: FailFastList[TokenId]


class DetokenizeResponse(StrictModel):
    """The text."""

    prompt: str
