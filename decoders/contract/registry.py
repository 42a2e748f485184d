"""The registry of decoding methods by their public ids, built in or added by a package.

A `Method` is a record that is cheap to import; its code is loaded when a request first uses it. A
package adds methods through the entry-point group `plait.methods`; each entry names a `Method`. Ids
are the papers' names in kebab-case, unique within a kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from itertools import chain, combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from plait.decoders.contract.decoding import MethodSpec

Kind = Literal["sampler", "drafter", "unmasker", "search", "scorer", "check"]
GROUP = "plait.methods"

# By capability: the error for a method that needs it on a worker that lacks it; the first counts.
LACKING: Mapping[str, str] = {
    "canvas": "works on diffusion models only; this model writes one token after the other",
    "full_attention": "needs a diffusion model with full attention, and this one has none",
    "shadow": "needs a model whose rows predict their own position; this one's predict the next",
    "draft_model": "needs a second model, which the server gets by --draft-model",
    "tree": "needs attention to trees of drafts, which this model's worker has not",
    "search": "weighs sequences against each other, which this model's worker can't",
}


class Options(BaseModel):
    """Base of every method's options; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its id, options, requirements, and where its code is."""

    kind: Kind
    name: str
    summary: str
    source: str  # paper and section; empty for common knowledge
    target: str  # "package.module:factory"; called with the options and its kind's keywords
    options: type[Options] = Options
    needs: frozenset[str] = frozenset()  # of the worker; ModelInfo.capabilities answers
    part: str = ""  # unmaskers: which part of a step it decides; one method a part and request
    excludes: frozenset[str] = frozenset()  # names of methods that it can't be composed with
    replays: bool = False  # drafters: whether it reads nothing but tokens
    lossy: bool = False  # drafters: whether texts may follow another distribution with it
    num_sequences: str = ""  # of a search: the option that says how many sequences it runs
    is_causal: bool = False  # searches: whether it needs models that write token after token
    is_scored: bool = False  # searches: whether they ask scorers, which the request must name then
    unused: frozenset[str] = frozenset()  # searches: request fields that can't be honoured with it
    presets: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, hash=False
    )  # further published options, by name

    def make(self, options: Options, **context: Any) -> Any:
        """Import the method's code and build it.

        Samplers get backend=: the kernels of the model's device; scorers context=: what the worker
        has for them (decoders/contract/scorer.py).
        Unmaskers get what the diffusion decoder passes (decoders/diffusion/pipeline.py), drafters
        context= (decoders/speculative/context.py).
        """
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)(options, **context)


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with the options that a request chose."""

    method: Method
    options: Options


def to_spec(choice: Choice) -> MethodSpec:
    """Return a choice in the form that travels."""
    options = choice.options.model_dump(mode="json", exclude_defaults=True)
    return MethodSpec(choice.method.name, options)


def from_spec(kind: Kind, spec: MethodSpec) -> Choice:
    """Return the choice that `to_spec` was given.

    Raises:
        MethodError: this process doesn't have the method.
    """
    method = _method(spec.name, kind, f"decoding.{kind}")
    return Choice(method, method.options.model_validate(spec.options))


class MethodError(ValueError):
    """A request names a method or option that can't be used; `param` is the field's path.

    lacking: the capability that the worker would need for it, if that is the reason.
    """

    def __init__(self, message: str, param: str, lacking: str = "") -> None:
        super().__init__(message)
        self.param = param
        self.lacking = lacking


# Modules whose METHODS are built in.
LISTS = (
    "plait.decoders.diffusion.methods",
    "plait.decoders.sampling.methods",
    "plait.decoders.scorers.methods",
    "plait.decoders.search.methods",
    "plait.decoders.speculative.methods",
)
DEFAULTS: Mapping[Kind, str] = {"sampler": "ordinary"}


@cache
def methods() -> Mapping[tuple[Kind, str], Method]:
    """Return all methods; a package can't replace a built-in one."""
    lists = [import_module(name).METHODS for name in LISTS]
    found = {(method.kind, method.name): method for method in chain(*lists)}
    for entry in entry_points(group=GROUP):
        method = entry.load()
        if not isinstance(method, Method):
            raise TypeError(f"entry point {entry.name!r} of group {GROUP} is not a Method")
        if found.setdefault((method.kind, method.name), method) is not method:
            raise TypeError(f"entry point {entry.name!r}: {method.name!r} is taken")
    return found


def choose(decoding: Mapping[str, Any], kind: Kind) -> Choice | None:
    """Return the method that a request's `decoding` object names for a kind.

    The value is an id, an object with `name` and options, "auto" (the default), or "off". Returns
    None if no method of the kind is used.

    Raises:
        MethodError: unknown id or option; the message lists the known ones.
    """
    value = decoding.get(kind, "auto")
    if value == "off" and kind != "sampler":
        return None
    if value == "auto":
        default = DEFAULTS.get(kind)
        return Choice(methods()[kind, default], Options()) if default else None
    return _choice(value, kind, f"decoding.{kind}")


def compose(decoding: Mapping[str, Any], kind: Kind) -> tuple[Choice, ...]:
    """Return the methods that a request names together; none for "auto" and "off".

    The value is as in `choose`, or a list of such values; of unmaskers, at most one for each part
    of a step.

    Raises:
        MethodError: as `choose`; or two methods decide the same part or exclude each other.
    """
    value = decoding.get(kind, "auto")
    if value in ("auto", "off"):
        return ()
    param = f"decoding.{kind}"
    if not isinstance(value, list | tuple):
        return (_choice(value, kind, param),)
    chosen = [_choice(each, kind, f"{param}.{i}") for i, each in enumerate(value)]
    for (_, one), (i, other) in combinations(enumerate(chosen), 2):
        names = f"{one.method.name} and {other.method.name}"
        if one.method.part and one.method.part == other.method.part:
            raise MethodError(
                f"{names} both decide the {one.method.part}; name one.", f"{param}.{i}"
            )
        if other.method.name in one.method.excludes or one.method.name in other.method.excludes:
            raise MethodError(f"{names} can't be composed.", f"{param}.{i}")
    return tuple(chosen)


def _choice(value: Any, kind: Kind, param: str) -> Choice:
    """Return the method that one value names, with a preset's options under its own."""
    fields = {"name": value} if isinstance(value, str) else dict(value)
    method = _method(fields.pop("name", None), kind, param)
    try:
        return Choice(method, method.options.model_validate(_with_preset(method, fields, param)))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([param, *map(str, first["loc"])])
        raise MethodError(_option_fault(method, first), path) from error


def _method(name: Any, kind: Kind, param: str) -> Method:
    method = methods().get((kind, str(name)))
    if method is None:
        known = sorted(known for each, known in methods() if each == kind) or ["none yet"]
        raise MethodError(f"There is no {kind} {name!r}; there is: {', '.join(known)}.", param)
    return method


def _option_fault(method: Method, error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return f"{method.name}: {error['msg'].removeprefix('Value error, ')}."
    known = ", ".join(sorted(method.options.model_fields)) or "none"
    return f"{method.name} has no option {error['loc'][-1]!r}; its options are: {known}."


def _with_preset(method: Method, fields: dict[str, Any], param: str) -> dict[str, Any]:
    if "preset" not in fields:
        return fields
    preset = fields.pop("preset")
    if not isinstance(preset, str) or preset not in method.presets:
        known = ", ".join(sorted(method.presets)) or "none"
        raise MethodError(
            f"{method.name} has no preset {preset!r}; its presets are: {known}.", f"{param}.preset"
        )
    return {**method.presets[preset], **fields}


def check_needs(choice: Choice, capabilities: Collection[str]) -> None:
    """Raise MethodError with the reason if the worker lacks a capability that the method needs."""
    missing = choice.method.needs - set(capabilities)
    if missing:
        first = first_lacking(missing)
        names = ", ".join(sorted(missing))
        why = LACKING.get(first, f"needs weights trained for this model, which has none: {names}")
        raise MethodError(f"{choice.method.name} {why}.", f"decoding.{choice.method.kind}", first)


def first_lacking(missing: Collection[str]) -> str:
    """Return the capability that tells most of why a worker can't run a method, or ""."""
    return next((need for need in LACKING if need in missing), "")
