"""What a request says of drafters, resolved against the registry. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from plait.decoders.contract.registry import Choice, MethodError, Options, compose, methods

DEFAULT_DRAFTERS = ("forced", "prediction", "suffix")  # each where it has something to go by
MAX_DRAFT = 64  # rows of one sequence, over all its drafters
PREDICTION = "prediction_token_ids"  # key of `decoding`: the answer that the client expects
PREDICTED = "prediction"  # the drafter that goes by it


class DraftOptions(Options):
    """What every drafter can be told."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Tokens of one draft, at most.")
    always: bool = Field(
        False, description="Draft whether it pays or not, as far as there is room: for measuring."
    )


class StoreOptions(DraftOptions):
    """Of drafters that go by earlier texts of the request's namespace."""

    learn: bool = Field(True, description="Later requests of the namespace may go by this one.")


def parse_names(text: str) -> str | list[str]:
    """Return a server's default, ids with commas between, as `decoding.drafter` would say it."""
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def resolve_drafters(options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Return the drafters of a request, in the order in which they are asked; none for "off".

    Raises:
        MethodError: unknown drafter or option, or one that is named twice.
    """
    if options.get("drafter", "auto") == "auto":
        found = methods()
        chosen = tuple(
            found["drafter", name] for name in DEFAULT_DRAFTERS if ("drafter", name) in found
        )
        return tuple(Choice(method, method.options()) for method in chosen)
    choices = compose(options, "drafter")
    names = [choice.method.name for choice in choices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MethodError(f"{twice} is named twice; name it once.", "decoding.drafter")
    if choices and all(is_acceptance_rule(choice) for choice in choices):
        raise MethodError(
            f"{names[0]} judges the drafts of others; name a drafter beside it.", "decoding.drafter"
        )
    return choices


def default_drafters(text: str) -> tuple[Choice, ...]:
    """Return the drafters that a server's default names.

    Raises:
        MethodError: as `resolve_drafters`; or one that is lossy, which a request has to want.
    """
    choices = resolve_drafters({"drafter": parse_names(text)})
    lossy = next((choice.method.name for choice in choices if choice.method.lossy), None)
    if lossy is not None:
        raise MethodError(f"{lossy} is lossy; only a request may name it.", "drafter")
    return choices


def is_acceptance_rule(choice: Choice) -> bool:
    """Tell whether a method drafts nothing itself, and only judges the drafts of others."""
    return choice.method.part == "judge" and not isinstance(choice.options, DraftOptions)


def is_lossy(options: Mapping[str, Any]) -> bool:
    """Tell whether a request's drafters may change the law of its text."""
    return any(choice.method.lossy for choice in resolve_drafters(options))
