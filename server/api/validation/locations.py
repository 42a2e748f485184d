"""Where in a request an error is, in the client's words: pydantic's locations without what it adds.

A location also holds the names of union branches, and a tag may look just like a field ("text" is a
tag of content parts and a field of theirs). So locations are followed through the annotations.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]
Models = tuple[type[BaseModel], ...]


@dataclass(frozen=True, slots=True)
class Location:
    """A path into a request, and the models of which each step is a field."""

    path: Path
    owners: tuple[Models, ...]  # of each step; () for an item of a list or a value of a map

    @property
    def name(self) -> str:
        """The last step."""
        return str(self.path[-1]) if self.path else ""


def locate(kind: Any, parts: Sequence[str | int]) -> Location:
    """Return the location that pydantic's `loc` means within a value of a type."""
    kinds = [kind]
    path: list[str | int] = []
    owners: list[Models] = []
    for part in parts:
        kinds = [_bare(each) for each in kinds]
        if isinstance(part, int):
            models: Models = ()
            kinds = [get_args(each)[0] for each in kinds if get_origin(each) is list]
        elif any(_is_union(each) for each in kinds):
            kinds = [branch for each in kinds for branch in _branches(each, part)]
            continue
        elif models := tuple(each for each in kinds if _is_model(each)):
            kinds = [field.annotation for model in models for field in _named(model, part)]
        elif any(get_origin(each) is dict for each in kinds):
            kinds = [get_args(each)[1] for each in kinds if get_origin(each) is dict]
        else:
            continue  # the name of a step of the validation
        path.append(part)
        owners.append(models)
    return Location(tuple(path), tuple(owners))


def dotted(path: Sequence[str | int]) -> str:
    """Return messages[0].content for ("messages", 0, "content")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def field_names(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields by the names that requests have for them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def models_within(kind: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the models that a value of a type may be, or is a list of (then with True)."""
    kind = _bare(kind)
    if _is_model(kind):
        yield kind, False
    elif _is_union(kind):
        for branch in _members(kind):
            yield from models_within(branch)
    elif get_origin(kind) is list:
        yield from ((model, True) for model, _ in models_within(get_args(kind)[0]))


def _bare(kind: Any) -> Any:
    """Return a type without what is annotated to it, and without the None of an optional one."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif _is_union(kind) and len(_members(kind)) == 1:
            (kind,) = _members(kind)
        else:
            return kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _members(union: Any) -> list[Any]:
    return [member for member in get_args(union) if member is not types.NoneType]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _named(model: type[BaseModel], name: str) -> list[FieldInfo]:
    field = field_names(model).get(name)
    return [] if field is None else [field]


def _branches(kind: Any, label: str) -> list[Any]:
    """Return the members of a union that pydantic calls by a tag, or by a type's name."""
    if not _is_union(kind):
        return [kind]
    members = _members(kind)
    tagged = [member for member in members if label in _tags(member)]
    return tagged or [member for member in members if _has_label(_bare(member), label)]


def _has_label(kind: Any, label: str) -> bool:
    origin = get_origin(kind)
    if origin in (list, dict):
        return label.startswith(f"{origin.__name__}[")
    if _is_union(kind):
        return "union[" in label
    return getattr(kind, "__name__", "") == label


def _tags(member: Any) -> set[Any]:
    """Return what may choose a member: its Tag, or the constants of its fields."""
    given = {extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)}
    kind = _bare(member)
    if given or not _is_model(kind):
        return given
    annotations = [field.annotation for field in kind.model_fields.values()]
    return {
        value for each in annotations if get_origin(each) is Literal for value in get_args(each)
    }
