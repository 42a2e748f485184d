"""Reads each place of a schema once, and answers questions about other places meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from plait.decoders.constrained.schema.facts import SchemaRef, SchemaRefs
from plait.decoders.constrained.schema.read import ANNOTATIONS
from plait.decoders.constrained.schema.references.document import Document
from plait.decoders.constrained.schema.references.resources import REFERENCES
from plait.decoders.constrained.schema.sets.branches import Several
from plait.decoders.constrained.schema.sets.outside import Unprovable
from plait.decoders.constrained.spec import UnsupportedKeyword

MAX_REFERENCES = 32  # one to the next
MAX_LEVELS = 4  # of questions about further levels, asked while reading


class _RecursiveRead(Exception):
    """A question about a schema that is being read at the moment."""


class PlaceReader:
    """The alternatives of single places.

    A question that leads too deep, or back to what is being read, is given up. What was read
    without its answer serves questions as deep as that one only, and is read again otherwise.

    Args:
        read: reads a place; sets `has_narrowed` where there may be more alternatives.
    """

    def __init__(self, read: Callable[[SchemaRef], Several]) -> None:
        self._read = read
        self._known: dict[SchemaRef, Several] = {}
        self._narrow: set[SchemaRef] = set()  # places whose alternatives may not be all there are
        self._open: dict[SchemaRef, int] = {}  # being read, with the order of opening
        self._floor = 0  # places opened before this belong to spots further up
        self._levels = 0  # of questions within questions
        self._guesses: dict[SchemaRef, tuple[int, Several]] = {}  # with the levels of the reading
        self._given_up: dict[SchemaRefs, int] = {}  # questions, with their levels
        self._is_limited = False  # while a place is being read: was a question given up?
        self.has_narrowed = False  # while a place is being read: did anything narrow it?

    def is_known(self, place: SchemaRef) -> bool:
        """Tell whether what was read of a place stays."""
        return place in self._known

    def is_narrow(self, place: SchemaRef) -> bool:
        """Tell whether a place that was read may have more alternatives."""
        return place in self._narrow

    def at(self, place: SchemaRef) -> Several:
        """Return the alternatives of a place.

        Raises:
            UnsupportedKeyword: something in there cannot be enforced.
        """
        known = self._remembered(place)
        if known is not None:
            self.has_narrowed |= place in self._narrow
            return known
        if place in self._open:
            if self._open[place] < self._floor:
                raise _RecursiveRead
            reason = "the reference leads back to itself without an object or array in between"
            raise UnsupportedKeyword(place.pointer, "$ref", reason)
        self._open[place] = len(self._open)
        outside = self.has_narrowed, self._is_limited
        self.has_narrowed = self._is_limited = False
        try:
            known = self._read(place)
            self._keep(place, known)
        finally:
            self.has_narrowed |= outside[0]
            self._is_limited |= outside[1]
            del self._open[place]
            if not self._open:
                self._guesses.clear()
                self._given_up.clear()
        return known

    def _remembered(self, place: SchemaRef) -> Several | None:
        known = self._known.get(place)
        if known is None and place in self._guesses and self._guesses[place][0] <= self._levels:
            self._is_limited = True
            return self._guesses[place][1]
        return known

    def _keep(self, place: SchemaRef, known: Several) -> None:
        if self.has_narrowed:
            self._narrow.add(place)
        else:
            self._narrow.discard(place)
        if self.has_narrowed and self._is_limited and self._levels:
            self._guesses[place] = (self._levels, known)
        else:
            self._known[place] = known

    def asked(self, places: SchemaRefs, of: Callable[[SchemaRefs], Several]) -> Several:
        """Return the alternatives of a value further down, asked while reading this one.

        Raises:
            Unprovable: they depend on what is being read, or cannot be told from here; where they
                are needed, they are read again, from there.
        """
        if self._given_up.get(places, MAX_LEVELS) <= self._levels:
            self._is_limited = True
            raise Unprovable("the schema is nested too deeply here")
        outside, self._floor = self._floor, len(self._open)
        narrowed = self.has_narrowed
        self._levels += 1
        try:
            return of(places)
        except (_RecursiveRead, UnsupportedKeyword) as error:
            self._is_limited = True
            self._given_up[places] = self._levels - 1
            raise Unprovable(str(error) or "the schema is recursive here") from None
        finally:
            self._floor, self.has_narrowed = outside, narrowed
            self._levels -= 1


def meant(document: Document, place: SchemaRef) -> SchemaRef:
    """Return the place that another one refers to and says nothing else."""
    pointer = place.pointer
    for _ in range(MAX_REFERENCES):
        pointer = document.entered(pointer)
        schema = document.at(pointer)
        if not isinstance(schema, dict) or REFERENCES.isdisjoint(schema):
            return place if pointer == place.pointer else SchemaRef(pointer, place.negated)
        said = schema.keys() - ANNOTATIONS
        if len(said) != 1 or not said <= REFERENCES:
            return SchemaRef(pointer, place.negated)
        keyword = said.pop()
        if not isinstance(schema[keyword], str):
            break
        pointer = document.resolve(schema[keyword], pointer, keyword)
    return place  # they lead in a circle, or nearly so; reading it says what is wrong
