"""From a request's messages to tokens: what templates get of them, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plait.server.api.schemas.chat import AssistantMessage, ChatRequest, Message
from plait.server.api.schemas.tokenize import TokenizeRequest
from plait.server.prompt.template import chat_prompt, normalize
from plait.server.prompt.tokenizer import Tokenizer


def chat_tokens(
    request: ChatRequest | TokenizeRequest, tokenizer: Tokenizer, check: Callable[[str], None]
) -> list[int]:
    """Return the tokens of a conversation; for threads, as rendering may take a while.

    Args:
        request: Its messages, and how the template is to write them.
        tokenizer: The model's.
        check: Refuses what is sure to be too long, before it is tokenised.
    Raises:
        BadRequest: the template can't write the messages, or `check` has refused them.
    """
    continues = bool(request.continue_final_message)
    opens = request.add_generation_prompt
    return chat_prompt(
        tokenizer,
        [_template_message(message) for message in request.messages or ()],
        add_generation_prompt=not continues if opens is None else opens,
        continue_final_message=continues,
        kwargs=request.chat_template_kwargs,
        check=check,
    )


def message_text(message: Message) -> str:
    """Return what a message says, its parts joined."""
    return normalize([_template_message(message)])[0]["content"]


def num_chars(messages: Sequence[Message]) -> int:
    """Return the length of what is said in a conversation."""
    contents = (message.content for message in messages)
    return sum(_length(content) for content in contents)


def _length(content: Any) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    return sum(len(getattr(part, part.type)) for part in content)


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.model_dump(include={"role", "content", "name"}, exclude_none=True)
    if isinstance(message, AssistantMessage):
        fields.setdefault("content", message.refusal or "")
        if thought := message.reasoning_content or message.reasoning:
            fields["reasoning_content"] = thought
    return fields
