"""Reads a JSON text byte by byte: which brackets are open, and which members each of them has."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from plait.decoders.constrained.grammar.nodes import DISTINCT
from plait.decoders.constrained.schema.facts import json_key

_NOWHERE = -1
_BLANKS = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Level:
    """An open bracket."""

    below: Level | None
    is_object: bool
    marks: int
    seen: frozenset[Hashable] = frozenset()  # members that must not come again, by json_key
    start: int = _NOWHERE  # offset of the member that is being written
    in_key: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far a JSON text has been read."""

    level: Level | None = None
    in_string: bool = False
    is_escaped: bool = False


class Repeated(Exception):
    """A member repeats an earlier one of the bracket at a depth, the outermost at 1."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.depth = depth


def read_byte(place: Place, text: bytes | bytearray, at: int, marks: int) -> Place:
    """Return the place behind the byte at an offset of a JSON text.

    marks: of the automaton behind that byte.

    Raises:
        Repeated: with it a member is complete that was there before.
    """
    if place.in_string:
        return _in_string(place, text, at)
    byte, level = text[at], place.level
    if byte in b"[{":
        is_object = byte == ord("{")
        inner = Level(_begun(level, at), is_object, marks, in_key=is_object)
        return Place(inner)
    if level is not None:
        level = _next(level, text, at)
    return Place(level, in_string=byte == ord('"'))


def _next(level: Level, text: bytes | bytearray, at: int) -> Level | None:
    """Return the level behind a byte that opens no bracket, outside of strings."""
    if text[at] in b",]}" or text[at] in _BLANKS:
        return _behind(level, text, at)
    if text[at] == ord(":"):
        return replace(level, in_key=False)
    return _begun(level, at)


def _in_string(place: Place, text: bytes | bytearray, at: int) -> Place:
    if place.is_escaped:
        return replace(place, is_escaped=False)
    if text[at] == ord("\\"):
        return replace(place, is_escaped=True)
    if text[at] != ord('"'):
        return place
    level = place.level
    return Place(None if level is None else _ended(level, text, at + 1))


def _begun(level: Level | None, at: int) -> Level | None:
    """Return the level with the member that begins at an offset, unless one has begun."""
    return level if level is None or level.start >= 0 else replace(level, start=at)


def _ended(level: Level, text: bytes | bytearray, stop: int) -> Level:
    """Return the level whose member has ended in front of an offset."""
    if level.start < 0:
        return level
    is_member = level.in_key or not level.is_object
    if not is_member or not level.marks & DISTINCT:
        return replace(level, start=_NOWHERE)
    key = json_key(json.loads(bytes(text[level.start : stop])))
    if key in level.seen:
        raise Repeated(_depth(level))
    return replace(level, start=_NOWHERE, seen=level.seen | {key})


def _behind(level: Level, text: bytes | bytearray, at: int) -> Level | None:
    """Return the level behind a comma, a closing bracket or a blank."""
    level = _ended(level, text, at)
    if text[at] == ord(","):
        return replace(level, in_key=level.is_object)
    if text[at] in _BLANKS:
        return level
    return None if level.below is None else _ended(level.below, text, at + 1)


def _depth(level: Level | None) -> int:
    return sum(1 for _ in levels(level))


def levels(level: Level | None) -> Iterator[Level]:
    """Yield a level and those around it, the innermost first."""
    while level is not None:
        yield level
        level = level.below


def may_repeat(place: Place) -> bool:
    """Tell whether a member that is being written may turn out to be there already."""
    return any(
        level.seen and (level.in_key or not level.is_object) for level in levels(place.level)
    )
