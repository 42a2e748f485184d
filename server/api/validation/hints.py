"""Hints for unknown fields: what the client probably meant.

Spelling is only compared within the same object, as the same word may mean something else in
another. A field that another object has is said to belong there.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from plait.server.api.schemas.base import Unsupported
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.classify import ClassifyRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from plait.server.api.validation.locations import (
    Location,
    Path,
    dotted,
    field_names,
    models_within,
)

_INDEX = re.compile(r"\[\d+\]")
MAX_NAME = 64  # characters of a name that is compared with others
ROUTES: dict[type[BaseModel], str] = {
    ChatRequest: "/v1/chat/completions",
    CompletionRequest: "/v1/completions",
    ClassifyRequest: "/v1/classify",
    TokenizeRequest: "/tokenize",
    DetokenizeRequest: "/detokenize",
}
# Other servers' names of request fields; of several fields, the first that the request has counts.
RENAMED: dict[str, tuple[str, ...]] = {
    "ebnf": ("structured_outputs.grammar",),
    "enable_thinking": ("chat_template_kwargs.enable_thinking",),
    "format": ("response_format", "structured_outputs.json"),
    "grammar": ("structured_outputs.grammar",),
    "guided_choice": ("structured_outputs.choice",),
    "guided_grammar": ("structured_outputs.grammar",),
    "guided_json": ("structured_outputs.json",),
    "guided_regex": ("structured_outputs.regex",),
    "input": ("messages", "prompt"),
    "inputs": ("messages", "prompt"),
    "instructions": ("messages",),
    "json_schema": ("response_format", "structured_outputs.json"),
    "max_completion_tokens": ("max_tokens",),
    "max_new_tokens": ("max_tokens",),
    "max_output_tokens": ("max_completion_tokens", "max_tokens"),
    "max_tokens_to_sample": ("max_tokens",),
    "min_new_tokens": ("min_tokens",),
    "n_predict": ("max_tokens",),
    "n_probs": ("top_logprobs", "logprobs"),
    "num_predict": ("max_tokens",),
    "num_return_sequences": ("n",),
    "random_seed": ("seed",),
    "regex": ("structured_outputs.regex",),
    "repeat_penalty": ("repetition_penalty",),
    "response_format": ("structured_outputs.json",),
    "response_schema": ("response_format", "structured_outputs.json"),
    "stop_sequences": ("stop",),
    "stop_strings": ("stop",),
    "system": ("messages",),
    "system_prompt": ("messages",),
    "think": ("chat_template_kwargs.enable_thinking",),
    "timeout": ("deadline_ms",),
    "top_logprobs": ("logprobs",),
}
# Or what to do instead, by the path of the field.
SAID: dict[str, str] = {
    "do_sample": "temperature=0 does not draw, any other temperature does.",
    "extra_body": "The openai client for Python merges it into the body; write its fields there.",
    "request_id": "Send the header X-Request-Id.",
    "messages[].prefix": "continue_final_message=true writes on where the last message ends.",
    "messages[].tool_call_id": "Tools are not implemented yet.",
    "structured_outputs.disable_any_whitespace": 'Send "options": {"whitespace": "compact"}.',
    "structured_outputs.disable_additional_properties": "Objects are closed unless "
    'structured_outputs.options has "objects": "open".',
    "structured_outputs.json_object": 'Send "response_format": {"type": "json_object"}.',
    "response_format.schema": 'A schema goes with "type": "json_schema", into '
    "response_format.json_schema.schema.",
}


@dataclass(frozen=True, slots=True)
class Hint:
    """A sentence, and the path that it suggests."""

    text: str = ""
    points_to: Path = ()


NO_HINT = Hint()


def hint_for(unknown: Location) -> Hint:
    """Return a hint for an unknown field."""
    if not unknown.owners or not unknown.owners[-1]:
        return NO_HINT
    return (
        _renamed(unknown)
        or _deeper(unknown)
        or _said(unknown)
        or _higher(unknown)
        or _of_other_routes(unknown)
        or _misspelt(unknown)
        or NO_HINT
    )


def _renamed(unknown: Location) -> Hint | None:
    if len(unknown.path) > 1:
        return None
    known = _fields(unknown)
    for name in RENAMED.get(unknown.name, ()):
        head = name.partition(".")[0]
        if head in known:
            return Hint(f"Did you mean {name}?", (head,))
    return None


def _deeper(unknown: Location) -> Hint | None:
    """Search for the name in the objects within this one."""
    found = {
        (name, is_list)
        for name, field in _fields(unknown).items()
        for model, is_list in models_within(field.annotation)
        if unknown.name in field_names(model)
    }
    if len(found) != 1:
        return None
    ((name, is_list),) = found
    path = (*unknown.path[:-1], name)
    return Hint(f"It belongs in {dotted(path)}{'[i]' if is_list else ''}.", path)


def _said(unknown: Location) -> Hint | None:
    text = SAID.get(_INDEX.sub("[]", dotted(unknown.path)))
    return Hint(text) if text else None


def _higher(unknown: Location) -> Hint | None:
    """Look for the name in the objects that this one is in."""
    here = dotted(unknown.path[:-1])
    for depth in reversed(range(len(unknown.path) - 1)):
        if any(unknown.name in field_names(model) for model in unknown.owners[depth]):
            there = dotted(unknown.path[:depth]) or "the request"
            return Hint(f"It is a field of {there}, not of {here}.")
    return None


def _of_other_routes(unknown: Location) -> Hint | None:
    if len(unknown.path) > 1 or not any(model in ROUTES for model in unknown.owners[-1]):
        return None
    own = [name for name, field in _fields(unknown).items() if field.is_required()]
    for model, route in ROUTES.items():
        field = field_names(model).get(unknown.name)
        if field is not None and not _is_refused(field):
            is_in_place = field.is_required() and len(own) == 1
            return Hint(f"POST {route} has it.", tuple(own) if is_in_place else ())
    return None


def _misspelt(unknown: Location) -> Hint | None:
    names = [name for name, field in _fields(unknown).items() if not _is_refused(field)]
    close = difflib.get_close_matches(unknown.name[:MAX_NAME], names, 1)
    return Hint(f"Did you mean {close[0]}?", (*unknown.path[:-1], close[0])) if close else None


def _fields(unknown: Location) -> dict[str, FieldInfo]:
    return {name: f for model in unknown.owners[-1] for name, f in field_names(model).items()}


def _is_refused(field: FieldInfo) -> bool:
    return any(isinstance(mark, Unsupported) for mark in field.metadata)
