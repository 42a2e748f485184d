"""From a request's `decoding` object to the methods that decide its steps.

A front end only needs `check`: it validates the object and loads no method (no torch).
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
    ConstraintMethod,
    Scaffold,
    Scorer,
    Selector,
    Stopper,
    Verifier,
    WindowPolicy,
)
from plait.decoders.diffusion.spec import Attention, DiffusionSpec

AUTO = ("static", "free-dave")  # one token per step, several steps verified per pass
SELECTOR = "static"  # for a list that names no selector
NEEDS_CONSTRAINT = ("scaffold", "constraint")  # parts that mean nothing without one
KV_BLOCK_SIZE = 16  # tokens of a KV block; a diffusion block divides it or is a multiple of it


@dataclass(frozen=True, slots=True)
class UnmaskingConfig:
    """What a request asks for, validated."""

    choices: tuple[Choice, ...]  # one method for each part named
    attention: Attention
    block_size: int


@dataclass(frozen=True, slots=True)
class UnmaskingPipeline:
    """The methods that decide the steps of a sequence. Stateless; shared by sequences."""

    names: Mapping[str, str]  # part -> public id of its method
    attention: Attention
    block_size: int  # positions that are unmasked before the next ones begin
    selector: Selector
    scorer: Scorer | None = None
    window: WindowPolicy | None = None
    stopper: Stopper | None = None
    verifier: Verifier | None = None
    cache: CachePolicy | None = None
    scaffold: Scaffold | None = None
    constraint: ConstraintMethod | None = None  # None: the lookahead

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that some method reads."""
        return self.selector.needs | (self.scorer.needs if self.scorer else frozenset())

    @property
    def fills_forced(self) -> bool:
        """Whether tokens to which a constraint leaves no alternative are unmasked at once."""
        return self.constraint is None or self.constraint.fills_forced

    @property
    def revises(self) -> bool:
        """Whether unmasked positions of the block may be masked again."""
        return "leave_one_out" in self.selector.needs


def check(
    decoding: Mapping[str, Any], spec: DiffusionSpec, extras: PromptExtras = NO_EXTRAS
) -> UnmaskingConfig:
    """Return what a request's `decoding` object asks of a model.

    `unmasker`: "off" is left to right (blocks of 1); "auto" is AUTO; a list composes methods.
    `canvas`: {"attention": "block" | "full", "block_size": int}; the defaults are the model's.

    Raises:
        MethodError: an unknown method or option, a combination that is not possible, or weights
            that were not trained for it.
    """
    attention = _attention(decoding, spec, extras.infill_field)
    config = UnmaskingConfig(_choices(decoding), attention, _block_size(decoding, spec, attention))
    _check_parts(config, spec)
    return config


def to_methods(config: UnmaskingConfig) -> DiffusionMethods:
    """Return a configuration in the form that travels."""
    unmasker = tuple(to_spec(choice) for choice in config.choices)
    return DiffusionMethods(unmasker, config.attention, config.block_size)


def from_methods(methods: DiffusionMethods) -> UnmaskingConfig:
    """Return the configuration that `to_methods` was given."""
    choices = tuple(from_spec("unmasker", spec) for spec in methods.unmasker)
    return UnmaskingConfig(choices, methods.attention, methods.block_size)


def build_pipeline(
    config: UnmaskingConfig,
    spec: DiffusionSpec,
    *,
    folder: Path | None = None,
    delimiters: Callable[[], Collection[int]] = tuple,
) -> UnmaskingPipeline:
    """Load the methods of a configuration.

    Each is made with the keywords spec, folder (of the weights, if they came in one),
    attention and block_size; windows also with delimiters (tokens whose text contains a
    line break).

    Raises:
        MethodError: a method lacks what it needs, such as a file beside the weights.
    """
    context: dict[str, Any] = {
        "spec": spec,
        "folder": folder,
        "attention": config.attention,
        "block_size": config.block_size,
    }
    if any(choice.method.part == "window" for choice in config.choices):
        context["delimiters"] = delimiters()  # reading a vocabulary takes a while
    parts = {c.method.part: c.method.make(c.options, **context) for c in config.choices}
    names = {choice.method.part: choice.method.name for choice in config.choices}
    pipeline = UnmaskingPipeline(names, config.attention, config.block_size, **parts)
    if pipeline.revises and (spec.shift or pipeline.verifier or pipeline.cache):
        raise MethodError(
            f"{names['selector']} reads shadow rows, which predict their own position and see no "
            "cached copy of it: no drafts, no cache policy, no model that predicts the next one.",
            "decoding.unmasker",
        )
    if pipeline.revises and pipeline.scaffold:  # plug-ins can't exclude each other by name
        raise MethodError(
            f"{names['selector']} opens settled tokens again, and a scaffold would settle them "
            "again, without end.",
            "decoding.unmasker",
        )
    return pipeline


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
    """Return the block size; with full attention, any size suits the weights."""
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
    if attention == "block" and KV_BLOCK_SIZE % size and size % KV_BLOCK_SIZE:
        raise MethodError(f"A block size divides {KV_BLOCK_SIZE} or is a multiple of it.", param)
    return size


def _check_parts(config: UnmaskingConfig, spec: DiffusionSpec) -> None:
    """Reject combinations of methods that are not possible."""
    param = "decoding.unmasker"
    by_part = {choice.method.part: choice.method for choice in config.choices}
    cache, verifier = by_part.get("cache"), by_part.get("verifier")
    if cache and config.attention == "block":
        raise MethodError(
            f"{cache.name} is for full attention; finished blocks are cached exactly.", param
        )
    if cache and verifier:
        raise MethodError(
            f"{verifier.name} and {cache.name} can't be composed: what a draft's pass would leave "
            "in the cache is not what the certain canvas needs.",
            param,
        )
