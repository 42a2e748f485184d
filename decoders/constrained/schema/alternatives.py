"""Expands schemas into alternatives (disjunctive form): $ref, combinators, conditions resolved.

Laws: a value is valid under the schemas of some places if it is valid under one of the alternatives
(each of them may be narrower, never wider, where a keyword's exact reading has no such form: the
negations inside oneOf, not and if/else); no schema is visited inside itself at one spot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.schema.facts import Facts, SchemaRef, SchemaRefs, meet
from plait.decoders.constrained.schema.read import (
    ANNOTATIONS,
    Schema,
    close,
    read_assertions,
)
from plait.decoders.constrained.schema.references.document import Document
from plait.decoders.constrained.schema.references.reading import PlaceReader, meant
from plait.decoders.constrained.schema.references.resources import REFERENCES, escape
from plait.decoders.constrained.schema.sets.algebra import Algebra
from plait.decoders.constrained.schema.sets.branches import (
    FreeKinds,
    Overlaps,
    Several,
    folded,
    literals_of,
    of_literals,
    once_and_all,
)
from plait.decoders.constrained.schema.sets.outside import Unprovable
from plait.decoders.constrained.spec import UnsupportedKeyword

MAX_ALTERNATIVES = 256  # of a product of several unions: those grow fast
MAX_BRANCHES = 4096  # of one union: those are written out in the schema
MAX_PAIRS = MAX_ALTERNATIVES**2  # of alternatives that are compared or combined in one place
MAX_ALL_PAIRS = 2 * MAX_PAIRS  # in all places
MAX_TOGETHER = 4  # branches of an anyOf of which several may hold, where that matters
MANY = 8  # alternatives from which on it pays to look for empty ones


@dataclass(frozen=True, slots=True)
class OneOfBranch:
    """A branch of a oneOf: what it asks for, and what it takes away from the others."""

    wanted: Several
    unwanted: Several
    is_narrow: bool = False  # there may be more that it accepts


class Alternatives:
    """The alternatives of places, each computed once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._algebra = Algebra(self.below, self.is_exact, document.place_of)
        self._reader = PlaceReader(self._read)
        self._of_places: dict[SchemaRefs, Several] = {}
        self._num_pairs = 0  # of alternatives that were combined
        self.conflicts: dict[str, str] = {}  # pointer -> the keyword that left no alternative

    @property
    def algebra(self) -> Algebra:
        """Questions about facts that may need the alternatives of what lies below them."""
        return self._algebra

    def of(self, places: SchemaRefs) -> Several:
        """Return the alternatives of a value for which all places hold.

        Raises:
            UnsupportedKeyword: something in there cannot be enforced.
        """
        known = self._of_places.get(places)
        if known is None and self._contradict(places):
            known = self._of_places[places] = ()
        if known is None:
            known = self._at(places[0]) if places else (Facts(),)
            for place in places[1:]:
                known = self._product(known, self._at(place), place.pointer, "allOf")
            if all(map(self._reader.is_known, places)):
                self._of_places[places] = known
        return known

    def _contradict(self, places: SchemaRefs) -> bool:
        """Tell whether one of the places is another one's negation."""
        negated = [meant(self._document, place).pointer for place in places if place.negated]
        if not negated or len(negated) == len(places):
            return False
        others = (meant(self._document, place).pointer for place in places if not place.negated)
        return not set(negated).isdisjoint(others)

    def _at(self, place: SchemaRef) -> Several:
        return self._reader.at(place)

    def _read(self, place: SchemaRef) -> Several:
        at = place.pointer
        return self._not((Facts(),), at, at) if place.negated else self._schema(at)

    def below(self, places: SchemaRefs) -> Several:
        """Return the alternatives of a value further down, asked while reading this one.

        Raises:
            Unprovable: they cannot be told from here.
        """
        return self._reader.asked(places, self.of)

    def is_exact(self, places: SchemaRefs) -> bool:
        """Tell whether the alternatives of the places are all there are."""
        try:
            found = self.below(places)
        except Unprovable:
            return False
        is_all = not any(map(self._reader.is_narrow, places))
        return is_all or (not found and self._contradict(places))

    def _schema(self, pointer: str) -> Several:
        pointer = self._document.entered(pointer)
        schema = self._document.at(pointer)
        if isinstance(schema, bool):
            return (Facts(pointer=pointer),) if schema else ()
        if not isinstance(schema, dict):
            raise UnsupportedKeyword(pointer, "", "a schema is an object or a boolean")
        context: Several = (read_assertions(schema, pointer),)
        for keyword in REFERENCES & schema.keys():
            context = self._reference(context, schema, pointer, keyword)
        for place in _listed(schema, pointer, "allOf"):
            context = self._product(context, self._at(place), pointer, "allOf")
        if "anyOf" in schema:
            context = self._any_of(context, schema, pointer)
        context = self._dependent(context, schema, pointer)
        if "oneOf" in schema:
            context = self._one_of(context, schema, pointer)
        if "not" in schema:
            context = self._not(context, f"{pointer}/not", pointer)
        if "if" in schema:
            context = self._condition(context, schema, pointer)
        if "unevaluatedProperties" not in schema and "unevaluatedItems" not in schema:
            return context
        # A value of two alternatives has more evaluated than either of them knows.
        self._reader.has_narrowed |= len(context) > 1
        return tuple(close(facts, schema, pointer) for facts in context)

    def _not(self, context: Several, negated: str, pointer: str) -> Several:
        """Return the context without what a schema allows; not of not is the schema itself."""
        negated = self._document.entered(negated)
        schema = self._document.at(negated)
        if isinstance(schema, dict) and {"not"} == set(schema) - ANNOTATIONS:
            inner = tuple(map(unevaluating, self._at(SchemaRef(f"{negated}/not"))))
            return self._product(context, inner, pointer, "not")
        return self._without(context, SchemaRef(negated), pointer, "not")

    def _reference(self, context: Several, schema: Schema, pointer: str, keyword: str) -> Several:
        reference = schema[keyword]
        if not isinstance(reference, str):
            raise UnsupportedKeyword(pointer, keyword, "its value must be a string")
        target = SchemaRef(self._document.resolve(reference, pointer, keyword))
        return self._product(context, self._at(target), pointer, keyword)

    def _any_of(self, context: Several, schema: Schema, pointer: str) -> Several:
        branches = [self._at(place) for place in _listed(schema, pointer, "anyOf")]
        if self._document.tracks_evaluated and len(branches) <= MAX_TOGETHER:
            branches = self._together(branches, pointer)
        union = tuple(facts for branch in branches for facts in branch)
        return self._product(context, folded(union, self._algebra, pointer), pointer, "anyOf")

    def _together(self, branches: Sequence[Several], pointer: str) -> list[Several]:
        """Return the branches, and what several of them evaluate that hold at once."""
        found: list[Several] = []
        for branch in branches:
            both = [self._product(known, branch, pointer, "anyOf") for known in found]
            found += [branch, *both]
        return found

    def _one_of(self, context: Several, schema: Schema, pointer: str) -> Several:
        """Return each branch without what another branch accepts as well."""
        branches = self._branches(schema, pointer)
        known = [None if branch.is_narrow else branch.unwanted for branch in branches]
        free = FreeKinds([branch or () for branch in known])
        overlaps = Overlaps(known, self._algebra.values)
        products = [self._product(context, b.wanted, pointer, "oneOf") for b in branches]
        mine = [free.taken(several, index) for index, several in enumerate(products)]
        others = [overlaps.of(several, index) for index, several in enumerate(mine)]
        what = "pairs of branches that may overlap"
        _check(sum(map(len, others)), MAX_PAIRS, pointer, "oneOf", what)
        found: list[Facts] = []
        for several, overlapping in zip(mine, others, strict=True):
            kept = several
            for other in overlapping:
                kept = self._minus(kept, branches[other], pointer, "oneOf")
            found += kept
        self._note(context, found, pointer, "oneOf")
        return _limited(found, pointer, "oneOf", max(MAX_ALTERNATIVES, len(branches)))

    def _branches(self, schema: Schema, pointer: str) -> list[OneOfBranch]:
        """Return the branches of a oneOf, those that only list values as one of them."""
        found, lists = [], []
        for place in _listed(schema, pointer, "oneOf"):
            several = self._at(place)
            values = folded(several, self._algebra, pointer)
            is_narrow = self._reader.is_narrow(place)
            listed = literals_of(values[0], self._algebra) if len(values) == 1 else None
            if listed is None or is_narrow:
                found.append(OneOfBranch(several, several, is_narrow))
            else:
                lists.append(listed)
        once, every = (of_literals(values, pointer) for values in once_and_all(lists))
        return [*([OneOfBranch(once, every)] if lists else []), *found]

    def _condition(self, context: Several, schema: Schema, pointer: str) -> Several:
        """Return what holds with the `if` and the `then`, and without the `if` but the `else`."""
        condition = SchemaRef(f"{pointer}/if")
        yes = self._product(context, self._at(condition), pointer, "if")
        if "then" not in schema and "else" not in schema:  # it asserts nothing, but it evaluates
            return context + yes * self._document.tracks_evaluated
        if "then" in schema:
            yes = self._product(yes, self._at(SchemaRef(f"{pointer}/then")), pointer, "then")
        no = self._without(context, condition, pointer, "if")
        if "else" in schema:
            no = self._product(no, self._at(SchemaRef(f"{pointer}/else")), pointer, "else")
        return yes + no

    def _dependent(self, context: Several, schema: Schema, pointer: str) -> Several:
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            listed = schema.get(keyword, {})
            if not isinstance(listed, dict):
                raise UnsupportedKeyword(pointer, keyword, "its value must be an object")
            for name, needs in listed.items():
                at = f"{pointer}/{keyword}/{escape(name)}"
                absent = Facts(forbidden=frozenset({name}), pointer=pointer)
                either = (absent, *self._present(name, needs, at))
                context = self._product(context, either, pointer, keyword)
        return context

    def _present(self, name: str, needs: Any, at: str) -> Several:
        """Return what holds when the name that others depend on is there."""
        if isinstance(needs, str):
            needs = [needs]
        if isinstance(needs, list):
            return (Facts(required=(name, *map(str, needs)), pointer=at),)
        return self._product(
            (Facts(required=(name,)),), self._at(SchemaRef(at)), at, "dependencies"
        )

    def _product(self, left: Several, right: Several, pointer: str, keyword: str) -> Several:
        pairs = len(left) * len(right)
        self._num_pairs += pairs
        _check(self._num_pairs, MAX_ALL_PAIRS, pointer, keyword, "combinations in all")
        is_one = len(left) == 1 or len(right) == 1
        _check(pairs, MAX_BRANCHES if is_one else MAX_PAIRS, pointer, keyword)
        found = [both for a in left for b in right if (both := meet(a, b)) is not None]
        if len(found) > MANY:
            found = self._possible(found, pointer, keyword)
        if right:
            self._note(left, found, pointer, keyword)
        return _limited(found, pointer, keyword, max(MAX_ALTERNATIVES, len(left), len(right)))

    def _possible(self, several: list[Facts], pointer: str, keyword: str) -> list[Facts]:
        try:
            return [facts for facts in several if not self._algebra.is_empty(facts)]
        except Unprovable as error:
            raise UnsupportedKeyword(pointer, keyword, str(error)) from None

    def _without(self, context: Several, place: SchemaRef, pointer: str, keyword: str) -> Several:
        """Return the context without the values that are valid at a place."""
        unwanted = self._at(place)
        branch = OneOfBranch(unwanted, unwanted, self._reader.is_narrow(place))
        return self._minus(context, branch, pointer, keyword)

    def _minus(self, context: Several, branch: OneOfBranch, pointer: str, keyword: str) -> Several:
        """Return the context without the values of a branch."""
        if branch.is_narrow:
            reason = "it negates what is itself told apart only in part"
            raise UnsupportedKeyword(pointer, keyword, reason)
        _check(len(context) * len(branch.unwanted), MAX_PAIRS, pointer, keyword)
        found: Sequence[Facts] = context
        for unwanted in branch.unwanted:
            try:
                parts = [self._algebra.exclude(facts, unwanted) for facts in found]
            except Unprovable as error:
                raise UnsupportedKeyword(pointer, keyword, str(error)) from None
            found = [left for pieces, _ in parts for left in pieces]
            _check(len(found), MAX_BRANCHES, pointer, keyword)
            self._reader.has_narrowed |= not all(is_all for _, is_all in parts)
        self._note(context, found, pointer, keyword)
        return _limited(found, pointer, keyword, max(MAX_ALTERNATIVES, len(context)))

    def _note(self, before: Several, found: Sequence[Facts], pointer: str, keyword: str) -> None:
        if before and not found:
            self.conflicts.setdefault(pointer, keyword)


def _listed(schema: Schema, pointer: str, keyword: str) -> list[SchemaRef]:
    """Return the schemas that a keyword lists."""
    listed = schema.get(keyword, [])
    if not isinstance(listed, list) or (keyword in schema and not listed):
        raise UnsupportedKeyword(pointer, keyword, "its value must be a list of schemas")
    return [SchemaRef(f"{pointer}/{keyword}/{index}") for index in range(len(listed))]


def _check(count: int, most: int, pointer: str, keyword: str, what: str = "alternatives") -> None:
    if count > most:
        reason = f"it spreads out into more than {most} {what}; use fewer or disjoint branches"
        raise UnsupportedKeyword(pointer, keyword, reason)


def _limited(found: Sequence[Facts], pointer: str, keyword: str, most: int) -> Several:
    _check(len(found), most, pointer, keyword)
    return tuple(found)


def unevaluating(facts: Facts) -> Facts:
    """Return the facts as they are known inside a negation, where nothing counts as evaluated."""
    return replace(
        facts,
        arrays=tuple(replace(rule, evaluates=False) for rule in facts.arrays),
        contains=tuple(replace(rule, evaluates=False) for rule in facts.contains),
        objects=tuple(replace(rule, evaluates=False) for rule in facts.objects),
    )


def untyped(facts: Facts) -> Facts:
    """Return facts read the way their author means them when no type was given.

    A schema without type, whose keywords speak of some types only, is read as of those types: the
    narrower reading of {"properties": {...}} is an object.
    """
    said = facts.mentions() & facts.kinds
    return facts if facts.is_typed or not said else replace(facts, kinds=said)


def enforceable(facts: Facts) -> Several | None:
    """Return narrower facts in place of what stands in the way; None: nothing does.

    Raises:
        UnsupportedKeyword: there are none.
    """
    for obstacle in facts.obstacles:
        if obstacle.kind not in facts.kinds:
            continue
        if not obstacle.narrower:
            raise UnsupportedKeyword(obstacle.pointer, obstacle.keyword, obstacle.reason)
        rest = replace(facts, obstacles=tuple(o for o in facts.obstacles if o is not obstacle))
        found = [meet(rest, narrower) for narrower in obstacle.narrower]
        return tuple(part for part in found if part is not None)
    return None
