"""From chat messages to token ids, by way of the model's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

# The variables by which chat templates switch thinking off; each template reads at most a few.
NO_THOUGHTS = {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}


def chat_tokens(
    request: ChatRequest | TokenizeRequest,
    kwargs: Mapping[str, Any],
    tokenizer: Tokenizer,
    check: Callable[[str], None],
) -> tuple[list[int], str | None]:
    """Return the token ids of a conversation, and the text that the output continues.

    The text is "" unless the last message is continued, and None if the template has changed that
    message. Rendering may take a while: call this from a thread.

    Args:
        request: Its messages, and where the prompt ends.
        kwargs: What the template gets beside the messages.
        tokenizer: The model's.
        check: Raises BadRequest for a rendered text that is certainly too long to tokenize.
    Raises:
        BadRequest: the template can't render the messages, or `check` refuses the text.
    """
    continues = bool(request.continue_final_message)
    opens = request.add_generation_prompt
    messages = request.messages or []
    prefill: str | None = ""

    def inspect(text: str) -> None:
        nonlocal prefill
        check(text)
        if continues:
            said = message_text(messages[-1])
            prefill = _rendered(said, text, tokenizer)

    token_ids = chat_prompt(
        tokenizer,
        [_template_message(message) for message in messages],
        add_generation_prompt=not continues if opens is None else opens,
        continue_final_message=continues,
        kwargs=kwargs,
        check=inspect,
    )
    return token_ids, prefill


def _rendered(said: str, text: str, tokenizer: Tokenizer) -> str | None:
    """Return the last message as a rendered text ends with it; templates may trim spaces."""
    spellings = (said, said.rstrip(), said.lstrip(), said.strip())
    return next((each for each in spellings if text.endswith(tokenizer.quote(each))), None)


def warnings_of(request: ChatRequest, tokenizer: Tokenizer) -> list[str]:
    """Return the paths of fields that the model's chat template ignores."""
    messages = [_template_message(message) for message in request.messages]
    unread = ignored_kwargs(tokenizer, request.chat_template_kwargs or {})
    return ignored_fields(tokenizer, messages) + unread


def message_text(message: Message) -> str:
    """Return the text of a message, its parts joined."""
    return normalize([_template_message(message)])[0]["content"]


def num_chars(messages: Sequence[Message]) -> int:
    """Return the number of characters of a conversation, thoughts included."""
    thoughts = (_thought(message) for message in messages if isinstance(message, AssistantMessage))
    return sum(_length(message.content) for message in messages) + sum(map(len, thoughts))


def _thought(message: AssistantMessage) -> str:
    return message.reasoning_content or message.reasoning or ""


def template_kwargs(request: ChatRequest, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Return chat_template_kwargs; with reasoning_effort "none", also those that end thinking."""
    given = request.chat_template_kwargs or {}
    if request.reasoning_effort is None:
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
