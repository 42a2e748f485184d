"""From a request's messages to tokens: what templates get of them, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plait.server.api.schemas.chat import AssistantMessage, ChatRequest, Message
from plait.server.api.schemas.tokenize import TokenizeRequest
from plait.server.prompt.chat_prompt import (
    chat_prompt,
    ignored_fields,
    ignored_kwargs,
    normalize,
    template_variables,
)
from plait.server.prompt.tokenizer import Tokenizer

# How templates are told so that have a switch for it; one that has none writes no thoughts anyway.
NO_THOUGHTS = {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}


def chat_tokens(
    request: ChatRequest | TokenizeRequest, tokenizer: Tokenizer, check: Callable[[str], None]
) -> tuple[list[int], str | None]:
    """Return the tokens of a conversation, and the text of an answer that it ends with.

    That is "" unless the last message is continued, and None if the template has changed it. For
    threads, as rendering may take a while.

    Args:
        request: Its messages, and how the template is to write them.
        tokenizer: The model's.
        check: Refuses what is sure to be too long, before it is tokenised.
    Raises:
        BadRequest: the template can't write the messages, or `check` has refused them.
    """
    continues = bool(request.continue_final_message)
    opens = request.add_generation_prompt
    messages = request.messages or []
    prefill: str | None = ""

    def look(text: str) -> None:
        nonlocal prefill
        check(text)
        if continues:
            said = message_text(messages[-1])
            prefill = _written(said, text, tokenizer)

    token_ids = chat_prompt(
        tokenizer,
        [_template_message(message) for message in messages],
        add_generation_prompt=not continues if opens is None else opens,
        continue_final_message=continues,
        kwargs=_kwargs(request, tokenizer),
        check=look,
    )
    return token_ids, prefill


def _written(said: str, text: str, tokenizer: Tokenizer) -> str | None:
    """Return the end of a rendered text that is the last message; templates may trim it."""
    spellings = (said, said.rstrip(), said.lstrip(), said.strip())
    return next((each for each in spellings if text.endswith(tokenizer.quote(each))), None)


def warnings_of(request: ChatRequest, tokenizer: Tokenizer) -> list[str]:
    """Return the paths of what is taken and changes nothing with this model."""
    messages = [_template_message(message) for message in request.messages]
    unread = ignored_kwargs(tokenizer, request.chat_template_kwargs or {})
    return ignored_fields(tokenizer, messages) + unread


def message_text(message: Message) -> str:
    """Return what a message says, its parts joined."""
    return normalize([_template_message(message)])[0]["content"]


def num_chars(messages: Sequence[Message]) -> int:
    """Return the length of what is said in a conversation."""
    thoughts = (_thought(message) for message in messages if isinstance(message, AssistantMessage))
    return sum(_length(message.content) for message in messages) + sum(map(len, thoughts))


def _thought(message: AssistantMessage) -> str:
    return message.reasoning_content or message.reasoning or ""


def _kwargs(request: ChatRequest | TokenizeRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the template is told; with reasoning_effort "none" also not to think."""
    given = request.chat_template_kwargs or {}
    if not isinstance(request, ChatRequest) or request.reasoning_effort is None:
        return given
    read = template_variables(tokenizer)
    return {name: value for name, value in NO_THOUGHTS.items() if name in read} | given


def _length(content: Any) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    return sum(len(getattr(part, part.type)) for part in content)


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.model_dump(include={"role", "content", "name"}, exclude_none=True)
    if isinstance(message, AssistantMessage):
        fields.setdefault("content", message.refusal or "")
        fields["reasoning_content"] = _thought(message)
    return fields
