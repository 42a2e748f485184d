"""From a request's `decoding` object to the methods that decode it. No torch.

This is the only place where names and options of methods are read from what a client has sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from plait.decoders.contract.decoding import (
    NO_EXTRAS,
    AutoregressiveMethods,
    DecodingSpec,
    Methods,
    PromptExtras,
)
from plait.decoders.contract.registry import (
    DEFAULTS,
    Choice,
    Kind,
    MethodError,
    check_needs,
    choose,
    compose,
    first_lacking,
    to_spec,
)
from plait.decoders.contract.registry import methods as known_methods
from plait.decoders.diffusion.pipeline import check, to_methods
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.speculative.config import resolve_drafters


def resolve_decoding(
    decoding: Mapping[str, Any],
    diffusion: DiffusionSpec | None = None,
    extras: PromptExtras = NO_EXTRAS,
    *,
    capabilities: Collection[str] | None = None,
) -> DecodingSpec:
    """Return what a `decoding` object asks of a model.

    Args:
        decoding: The object: a method, or a list of them, for each kind; `canvas`; `trace`.
        diffusion: The model's canvas, if it is a diffusion model.
        extras: What the request gives beside its prompt: text between text needs full attention.
        capabilities: What the worker can do (ModelInfo.capabilities); None: whatever is needed.
    Raises:
        MethodError: a method or option that doesn't exist, that this model or worker can't run, or
            that can't be composed with the others; `param` is the field's path.
    """
    chosen: dict[Kind, tuple[Choice, ...]] = {}
    for kind in get_args(Kind):
        chosen[kind] = _named(decoding, kind)
        for choice in chosen[kind]:
            _check_model(choice, diffusion, capabilities or ())
            if capabilities is not None:
                check_needs(choice, capabilities)
    _check_search(chosen)
    methods: Methods
    if diffusion is not None:
        methods = to_methods(check(decoding, diffusion, extras))
    elif "canvas" in decoding:
        raise MethodError(
            "This model writes one token after the other, without a canvas.",
            "decoding.canvas",
            "canvas",
        )
    else:
        (sampler,) = map(to_spec, chosen["sampler"])
        methods = AutoregressiveMethods(sampler, tuple(map(to_spec, resolve_drafters(decoding))))
    _check_scorers(chosen)
    search = next(map(to_spec, chosen["search"]), None)
    scorers = tuple(map(to_spec, chosen["scorer"]))
    checks = tuple(map(to_spec, chosen["check"]))
    return DecodingSpec(methods, search, scorers, checks, bool(decoding.get("trace")))


def _check_scorers(chosen: Mapping[Kind, tuple[Choice, ...]]) -> None:
    """Raise MethodError for a search without the scorers that it asks, or scorers without one."""
    scored = [choice.method.name for choice in chosen["search"] if choice.method.is_scored]
    if scored and not chosen["scorer"]:
        raise MethodError(f"{scored[0]} needs a scorer: name one or more.", "decoding.scorer")
    if chosen["scorer"] and not scored:
        asking = sorted(name for (_, name), method in known_methods().items() if method.is_scored)
        raise MethodError(
            f"A scorer is for searches that ask it: {', '.join(asking)}.", "decoding.scorer"
        )


def _check_search(chosen: Mapping[Kind, tuple[Choice, ...]]) -> None:
    """Raise MethodError if the search can't be composed with another method of the request."""
    named = [(kind, each.method.name) for kind, choices in chosen.items() for each in choices]
    for search in chosen["search"]:
        for kind, name in named:
            if name in search.method.excludes:
                raise MethodError(
                    f"{search.method.name} can't be composed with {name}.", f"decoding.{kind}"
                )


def _named(decoding: Mapping[str, Any], kind: Kind) -> tuple[Choice, ...]:
    """Return the methods of a kind that are named, and the default where one of them is needed."""
    if kind in ("unmasker", "scorer", "check"):
        return compose(decoding, kind)
    if kind == "drafter":
        return compose(decoding, kind) and resolve_drafters(decoding)
    choice = choose(decoding, kind)
    return () if choice is None else (choice,)


def _check_model(
    choice: Choice, diffusion: DiffusionSpec | None, capabilities: Collection[str]
) -> None:
    method = choice.method
    is_for_both = method.kind in ("unmasker", "search", "scorer") and not method.is_causal
    is_for_both = is_for_both or method.name == DEFAULTS.get(method.kind)
    if diffusion is not None and not is_for_both:
        raise MethodError(
            f"{method.name} is a {method.kind} of models that write one token after the other; "
            "this is a diffusion model.",
            f"decoding.{method.kind}",
            first_lacking(method.needs - set(capabilities)),
        )
