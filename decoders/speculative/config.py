"""The drafters that a request names, resolved against the registry. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from plait.decoders.contract.decoding import AutoregressiveMethods, Methods
from plait.decoders.contract.registry import (
    Choice,
    MethodError,
    Options,
    compose,
    from_spec,
    methods,
)

DEFAULT_DRAFTERS = ("forced", "prediction", "suffix")  # "auto": each drafts only where it can
MAX_DRAFT = 64  # draft tokens of one sequence and step, over all its drafters
ACCEPTANCE_RULE = "acceptance rule"  # Method.part of the lossy ones
PREDICTED = "prediction"  # the drafter that drafts from it


class DraftOptions(Options):
    """Options of every drafter."""

    max_draft: int = Field(16, ge=1, le=MAX_DRAFT, description="Tokens of one draft, at most.")
    always: bool = Field(
        False, description="Draft whether or not it pays, within the step's budget: for measuring."
    )


class StoreOptions(DraftOptions):
    """Options of drafters that use earlier texts of the request's namespace."""

    learn: bool = Field(
        True, description="Later requests of the namespace may use this one's output."
    )


def parse_names(text: str) -> str | list[str]:
    """Return a comma-separated list of ids as a value of `decoding.drafter`."""
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def resolve_drafters(options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Return the drafters of a request, in the order in which they are called; none for "off".

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


def drafter_choices(chosen: Methods | None) -> tuple[Choice, ...]:
    """Return the drafters of a request whose methods are resolved; None: those of "auto".

    Raises:
        MethodError: this process doesn't have one of them.
    """
    if chosen is None:
        return resolve_drafters({})
    assert isinstance(chosen, AutoregressiveMethods), "methods of a diffusion model"
    return tuple(from_spec("drafter", spec) for spec in chosen.drafters)


def default_drafters(text: str) -> tuple[Choice, ...]:
    """Return the drafters that a server's `--drafter` names.

    Raises:
        MethodError: as `resolve_drafters`; or one is lossy, which only a request may choose.
    """
    choices = resolve_drafters({"drafter": parse_names(text)})
    lossy = next((choice.method.name for choice in choices if choice.method.lossy), None)
    if lossy is not None:
        raise MethodError(f"{lossy} is lossy; only a request may name it.", "drafter")
    return choices


def is_acceptance_rule(choice: Choice) -> bool:
    """Tell whether a method drafts nothing itself and only accepts drafts of others."""
    return choice.method.part == ACCEPTANCE_RULE and not isinstance(choice.options, DraftOptions)


def is_lossy(options: Mapping[str, Any]) -> bool:
    """Tell whether a request's drafters may change the distribution of its text."""
    return any(choice.method.lossy for choice in resolve_drafters(options))
