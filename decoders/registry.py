"""Methods by their public ids, built in or added by an installed package.

A method is a `Method` record that costs nothing to import; the code behind it is loaded when a
request first asks for it. A package adds its own through the entry-point group `plait.methods`,
each entry of which names a `Method`. Ids are the papers' names in kebab-case, unique in their kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Kind = Literal["sampler", "drafter", "unmasker", "search"]
GROUP = "plait.methods"


class Options(BaseModel):
    """Base of every method's options: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Method:
    """One published method: what it is called, takes and needs, and where its code lives."""

    kind: Kind
    name: str
    summary: str
    source: str  # paper, section; empty for what is common knowledge
    target: str  # "package.module:factory"; called with the options and its kind's keywords
    options: type[Options] = Options
    needs: frozenset[str] = frozenset()  # of the worker; ModelInfo.capabilities answers

    def make(self, options: Options, **context: Any) -> Any:
        """Import the method's code and build it.

        Samplers get naive=: whether to compute with the oracles instead of the compiled kernels.
        """
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)(options, **context)


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with its options, as a request asked for it."""

    method: Method
    options: Options


class MethodError(ValueError):
    """A request asked for what isn't there; `param` is the path of the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


BUILT_IN = (
    Method(
        kind="sampler",
        name="ordinary",
        summary="Temperature, truncation and penalties by Gumbel-max over counter-based noise.",
        source="",
        target="plait.decoders.sampling.sampler:make_ordinary",
    ),
)
DEFAULTS: Mapping[Kind, str] = {"sampler": "ordinary"}


@cache
def methods() -> Mapping[tuple[Kind, str], Method]:
    """Return all known methods; a package can't replace one that is built in."""
    found = {(method.kind, method.name): method for method in BUILT_IN}
    for entry in entry_points(group=GROUP):
        method = entry.load()
        if not isinstance(method, Method):
            raise TypeError(f"entry point {entry.name!r} of group {GROUP} is not a Method")
        if found.setdefault((method.kind, method.name), method) is not method:
            raise TypeError(f"entry point {entry.name!r}: {method.name!r} is taken")
    return found


def choose(decoding: Mapping[str, Any], kind: Kind) -> Choice | None:
    """Return the method that a request's `decoding` object names for a kind.

    The value is an id, an object with `name` and options, "auto" (the default), or "off". None
    means that no method of the kind takes part.

    Raises:
        MethodError: unknown id or option, or nothing to choose from; the message lists what exists.
    """
    value = decoding.get(kind, "auto")
    param = f"decoding.{kind}"
    if value == "off" and kind != "sampler":
        return None
    if value == "auto":
        default = DEFAULTS.get(kind)
        return Choice(methods()[kind, default], Options()) if default else None
    fields = {"name": value} if isinstance(value, str) else dict(value)
    name = fields.pop("name", None)
    method = methods().get((kind, str(name)))
    if method is None:
        known = sorted(known for each, known in methods() if each == kind) or ["none yet"]
        raise MethodError(f"There is no {kind} {name!r}; there is: {', '.join(known)}.", param)
    try:
        return Choice(method, method.options.model_validate(fields))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([param, *map(str, first["loc"])])
        raise MethodError(f"{name}: {first['msg']}.", path) from error


def check_needs(choice: Choice, capabilities: list[str]) -> None:
    """Raise MethodError, naming it, if the worker lacks something that the method needs."""
    missing = sorted(choice.method.needs - set(capabilities))
    if missing:
        raise MethodError(
            f"{choice.method.name} needs {', '.join(missing)}, which this model's worker lacks.",
            f"decoding.{choice.method.kind}",
        )
