"""From chat messages to a prompt.

Messages are normalized first to what chat templates expect: a role and a string. Rendering blocks
for milliseconds, at worst for RENDER_SECONDS: call it from a thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from plait.server.errors import BadRequest
from plait.server.prompt.chat_template import UNEXPECTED, ChatTemplate, compile_template
from plait.server.prompt.tokenizer import Tokenizer

# chat_template_kwargs that a request may set, where the template reads them.
ALLOWED_KWARGS = frozenset(
    {
        "enable_thinking",
        "thinking",
        "reasoning_effort",
        "thinking_budget",
        "preserve_thinking",
        "clear_thinking",
        "date_string",
    }
)
MAX_KWARG_CHARS = 256
KWARG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
OPTIONAL = ("name", "reasoning_content")  # of a message
KNOWN_ROLES = frozenset({"system", "user", "assistant"})

# Marks the end of the message to be continued; the template writes its own text behind it.
CONTINUE_HERE = "\ufdd1"
KEPT = " "  # behind that mark, as in transformers: it is missing if the template trims messages

Message = dict[str, str]


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    check: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """Return the token ids of a conversation. `check` may reject the text before it is tokenized.

    Unlike encode(render_chat(...), special=True), special tokens in a message stay text: nobody can
    forge another role's turn. For other messages the two agree; a test checks it.

    Raises:
        BadRequest: as render_chat.
    """
    conversation = [
        {key: tokenizer.quote(value) for key, value in message.items()}
        for message in normalize(messages)
    ]
    text = _render(
        tokenizer,
        conversation,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        kwargs=kwargs or {},
    )
    check(text)
    return tokenizer.encode(text, special=True)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return a conversation as the model's chat template renders it.

    Args:
        tokenizer: Has the chat template.
        messages: OpenAI's: role, content (a string, text parts, or null) and perhaps a name and
            reasoning_content, which are omitted if the template does not render them.
        add_generation_prompt: End with the start of the assistant's turn.
        continue_final_message: End within the last message instead, so that the model continues
            it.
        kwargs: The request's chat_template_kwargs.
    Raises:
        BadRequest: the model has no template, the template rejects the messages or exceeds its
            limits, or it does not read an option; `param` names the field.
    """
    return _render(
        tokenizer,
        normalize(messages),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        kwargs=kwargs or {},
    )


def template_variables(tokenizer: Tokenizer) -> frozenset[str]:
    """Return the chat_template_kwargs that the model's template reads."""
    return _template(tokenizer).variables & ALLOWED_KWARGS


def ignored_fields(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the paths of message fields that the model's template does not render."""
    unread = [key for key in OPTIONAL if key not in _template(tokenizer).mentions]
    return [
        f"messages[{i}].{key}"
        for i, message in enumerate(messages)
        for key in unread
        if message.get(key)
    ]


def ignored_kwargs(tokenizer: Tokenizer, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the paths of chat_template_kwargs that the model's template does not read."""
    variables = _template(tokenizer).variables
    return [f"chat_template_kwargs.{key}" for key in kwargs if key not in variables]


def normalize(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the messages with roles that templates know and strings as content.

    The role developer, OpenAI's newer name of system, becomes system. Text parts are joined by
    line breaks, as in vLLM. Null content becomes "".

    Raises:
        BadRequest: there is no message, or a part is not text.
    """
    if not messages:
        raise BadRequest("messages is empty", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> Message:
    role = message["role"]
    normal = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), where),
    }
    optional = {key: message[key] for key in OPTIONAL if message.get(key)}
    return {**normal, **optional}


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: Mapping[str, Any], where: str) -> str:
    kind = part.get("type")
    text = part.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise BadRequest(f"content of type {kind!r} is not supported, only text", param=where)
    return text


def _render(
    tokenizer: Tokenizer,
    conversation: list[Message],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Mapping[str, Any],
) -> str:
    template = _template(tokenizer)
    _check_kwargs(template, kwargs)
    conversation = [_known_to(template, message) for message in conversation]
    variables = {
        **tokenizer.named_tokens,
        "tools": None,
        "documents": None,
        **kwargs,
        "add_generation_prompt": add_generation_prompt,
    }
    _check_roles(template, variables, conversation)
    if continue_final_message:
        if add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        message = conversation[-1]
        conversation = [*conversation[:-1], _left_open(message)]
    text = _run(template, {**variables, "messages": conversation})
    return _cut(text, message) if continue_final_message else text


def _template(tokenizer: Tokenizer) -> ChatTemplate:
    if tokenizer.chat_template is None:
        raise BadRequest("this model has no chat template; use /v1/completions", param="model")
    try:
        return compile_template(tokenizer.chat_template)
    except TemplateError as error:
        raise BadRequest(
            f"this model's chat template does not parse: {error}", param="model"
        ) from error


def _run(template: ChatTemplate, variables: Mapping[str, Any]) -> str:
    try:
        return template.render(variables)
    except TemplateError as error:
        raise BadRequest(f"the chat template refuses: {error}", param="messages") from error
    except UNEXPECTED as error:
        raise BadRequest(
            f"the chat template cannot render these messages: {error}", param="messages"
        ) from error


def _check_kwargs(template: ChatTemplate, kwargs: Mapping[str, Any]) -> None:
    for key, value in kwargs.items():
        param = f"chat_template_kwargs.{key}"
        if not KWARG_NAME.fullmatch(key):
            raise BadRequest("a name has letters, digits and _", param="chat_template_kwargs")
        if key in RESERVED or (key in template.variables and key not in ALLOWED_KWARGS):
            allowed = ", ".join(sorted(ALLOWED_KWARGS))
            raise BadRequest(f"{key!r} is not one of {allowed}", param=param)
        if not isinstance(value, bool | int | str | None) or len(str(value)) > MAX_KWARG_CHARS:
            raise BadRequest("must be a boolean, a number, null or a short string", param=param)


def _known_to(template: ChatTemplate, message: Message) -> Message:
    """Return a message without the fields that the template does not render."""
    unread = [key for key in OPTIONAL if key not in template.mentions]
    return {key: value for key, value in message.items() if key not in unread}


def _check_roles(
    template: ChatTemplate, variables: Mapping[str, Any], conversation: list[Message]
) -> None:
    """Raise BadRequest for a custom role whose messages the template does not render."""
    own = [i for i, message in enumerate(conversation) if message["role"] not in KNOWN_ROLES]
    if not own:
        return
    marks = {i: f"{CONTINUE_HERE}{i}{CONTINUE_HERE}" for i in own}
    marked = [
        {**message, "content": marks.get(i, message["content"])}
        for i, message in enumerate(conversation)
    ]
    text = _run(template, {**variables, "messages": marked})
    for i, mark in marks.items():
        if mark not in text:
            raise BadRequest(
                f"this model's chat template has no place for the role {conversation[i]['role']!r}",
                param=f"messages[{i}].role",
            )


def _left_open(message: Message) -> Message:
    return {**message, "content": message["content"] + CONTINUE_HERE + KEPT}


def _cut(text: str, message: Message) -> str:
    """Return the text up to the end of the message, whose trailing spaces may be trimmed."""
    before, mark, behind = text.rpartition(CONTINUE_HERE)
    if not mark:
        raise BadRequest(
            "this model's chat template does not write the last message",
            param="continue_final_message",
        )
    content = message["content"]
    if behind.startswith(KEPT) or not content.strip():
        return before
    return before.removesuffix(content[len(content.rstrip()) :])
