"""From a request's `decoding` object to the parts that decide its steps.

`check` is all that a front end needs: it names what can't be, and loads nothing (no torch).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from plait.decoders.contract.decoding import NO_EXTRAS, DiffusionMethods, PromptExtras
from plait.decoders.contract.registry import Choice, MethodError, compose, from_spec, to_spec
from plait.decoders.diffusion.protocols import (
    CachePolicy,
    Scaffold,
    Scorer,
    Selector,
    Stopper,
    Verifier,
    WindowPolicy,
)
from plait.decoders.diffusion.spec import Attention, DiffusionSpec

AUTO = ("static", "free-dave")  # one token a step, proved several at a time
SELECTOR = "static"  # of a list that names none
PAGE = 16  # tokens of a KV block; a block of a canvas divides it or is a multiple


@dataclass(frozen=True, slots=True)
class UnmaskingConfig:
    """What a request asked for, checked."""

    choices: tuple[Choice, ...]  # one method for each part named
    attention: Attention
    block_size: int


@dataclass(frozen=True, slots=True)
class UnmaskingPipeline:
    """The parts that decide the steps of one sequence. Stateless; shared by sequences."""

    names: Mapping[str, str]  # part -> public id of the method that decides it
    attention: Attention
    block_size: int  # positions settled before the next ones begin
    selector: Selector
    scorer: Scorer | None = None
    window: WindowPolicy | None = None
    stopper: Stopper | None = None
    verifier: Verifier | None = None
    cache: CachePolicy | None = None
    scaffold: Scaffold | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that some part reads."""
        return self.selector.needs | (self.scorer.needs if self.scorer else frozenset())

    @property
    def revises(self) -> bool:
        """Whether a settled token of the block may become a hole again."""
        return "shadow" in self.selector.needs


def check(
    decoding: Mapping[str, Any], spec: DiffusionSpec, extras: PromptExtras = NO_EXTRAS
) -> UnmaskingConfig:
    """Return what the request's `decoding` object asks of a model.

    `unmasker`: "off" is one token after the other (blocks of 1); "auto" is AUTO; a list composes.
    `canvas`: {"attention": "block" | "full", "block_size": int}, each the model's own by default.

    Raises:
        MethodError: an unknown method or option, a combination that can't be, or weights that were
            not trained for it.
    """
    attention = _attention(decoding, spec, extras.infill_field)
    recipe = UnmaskingConfig(_choices(decoding), attention, _block_size(decoding, spec, attention))
    _check_parts(recipe, spec)
    return recipe


def to_methods(recipe: UnmaskingConfig) -> DiffusionMethods:
    """Return a recipe in the form that travels."""
    unmasker = tuple(to_spec(choice) for choice in recipe.choices)
    return DiffusionMethods(unmasker, recipe.attention, recipe.block_size)


def from_methods(methods: DiffusionMethods) -> UnmaskingConfig:
    """Return the recipe that `to_methods` was given."""
    choices = tuple(from_spec("unmasker", spec) for spec in methods.unmasker)
    return UnmaskingConfig(choices, methods.attention, methods.block_size)


def build_pipeline(
    recipe: UnmaskingConfig,
    spec: DiffusionSpec,
    *,
    folder: Path | None = None,
    delimiters: Callable[[], Collection[int]] = tuple,
) -> UnmaskingPipeline:
    """Make the methods of a recipe.

    Each is made with the keywords spec, folder (of the weights, if they came in one),
    attention and block_size; windows also with delimiters (tokens whose text holds a line break).

    Raises:
        MethodError: a method lacks what it needs, such as a file beside the weights.
    """
    context: dict[str, Any] = {
        "spec": spec,
        "folder": folder,
        "attention": recipe.attention,
        "block_size": recipe.block_size,
    }
    if any(choice.method.part == "window" for choice in recipe.choices):
        context["delimiters"] = delimiters()  # reading a vocabulary takes a while
    parts = {c.method.part: c.method.make(c.options, **context) for c in recipe.choices}
    names = {choice.method.part: choice.method.name for choice in recipe.choices}
    chain = UnmaskingPipeline(names, recipe.attention, recipe.block_size, **parts)
    if chain.revises and (spec.shift or chain.verifier or chain.cache):
        raise MethodError(
            f"{names['selector']} reads shadow rows, which predict their own position and see no "
            "cached copy of it: no drafts, no cache policy, no model that predicts the next one.",
            "decoding.unmasker",
        )
    if chain.revises and chain.scaffold:  # by name only what is built in excludes each other
        raise MethodError(
            f"{names['selector']} opens settled tokens again, and a scaffold would settle them "
            "again, without end.",
            "decoding.unmasker",
        )
    return chain


def _choices(decoding: Mapping[str, Any]) -> tuple[Choice, ...]:
    value = decoding.get("unmasker", "auto")
    if value == "off":
        return compose({"unmasker": SELECTOR}, "unmasker")
    if value == "auto":
        return compose({"unmasker": list(AUTO)}, "unmasker")
    choices = compose(decoding, "unmasker")
    if any(choice.method.part == "selector" for choice in choices):
        return choices
    return (*compose({"unmasker": SELECTOR}, "unmasker"), *choices)


def _canvas(decoding: Mapping[str, Any]) -> Mapping[str, Any]:
    canvas = decoding.get("canvas") or {}
    unknown = sorted(set(canvas) - {"attention", "block_size"})
    if unknown:
        raise MethodError(
            f"A canvas has an attention and a block_size, but no {unknown[0]!r}.",
            f"decoding.canvas.{unknown[0]}",
        )
    return canvas


def _attention(decoding: Mapping[str, Any], spec: DiffusionSpec, infill: str | None) -> Attention:
    asked = _canvas(decoding).get("attention")
    if asked is not None and asked not in get_args(Attention):
        raise MethodError(
            f"There is no attention {asked!r}; there is: block, full.", "decoding.canvas.attention"
        )
    if infill and (asked == "block" or not spec.serves("full")):
        raise MethodError(
            "Text between text needs full attention, which "
            + ("the request excludes." if asked == "block" else "this model was not trained for."),
            "decoding.canvas.attention" if asked == "block" else infill,
        )
    attention: Attention = "full" if infill else asked or spec.attention
    if not spec.serves(attention):
        raise MethodError(
            f"This model was trained for {spec.attention} attention only.",
            "decoding.canvas.attention",
        )
    return attention


def _block_size(decoding: Mapping[str, Any], spec: DiffusionSpec, attention: Attention) -> int:
    """Return the block size; with full attention, the weights don't care."""
    param = "decoding.canvas.block_size"
    asked = _canvas(decoding).get("block_size")
    if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise MethodError("block_size is a whole number, at least 1.", param)
    if decoding.get("unmasker") == "off":
        if asked not in (None, 1):
            raise MethodError("With unmasker off the block size is 1.", param)
        return 1
    size: int = spec.block_size if asked is None else asked
    trained = sorted({spec.block_size, *spec.block_sizes})
    if attention == "block" and size not in trained:
        raise MethodError(
            f"This model was trained for blocks of {', '.join(map(str, trained))}, not {size}.",
            param,
        )
    if attention == "block" and PAGE % size and size % PAGE:
        raise MethodError(f"A block size divides {PAGE} or is a multiple of it.", param)
    return size


def _check_parts(recipe: UnmaskingConfig, spec: DiffusionSpec) -> None:
    """Refuse combinations that no step could make."""
    param = "decoding.unmasker"
    by_part = {choice.method.part: choice.method for choice in recipe.choices}
    cache, verifier = by_part.get("cache"), by_part.get("verifier")
    if cache and recipe.attention == "block":
        raise MethodError(
            f"{cache.name} is for full attention; finished blocks are cached exactly.", param
        )
    if cache and verifier:
        raise MethodError(
            f"{verifier.name} and {cache.name} can't be composed: what a draft's pass would leave "
            "in the cache is not what the certain canvas needs.",
            param,
        )
