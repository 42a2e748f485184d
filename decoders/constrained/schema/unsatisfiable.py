"""Explains why a schema is unsatisfiable: the deepest subschema at fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plait.decoders.constrained.grammar.check import Known, dead_refs, productive_rules
from plait.decoders.constrained.grammar.nodes import Node
from plait.decoders.constrained.schema.alternatives import Alternatives, untyped
from plait.decoders.constrained.schema.facts import Facts, SchemaRef, SchemaRefs
from plait.decoders.constrained.schema.references.document import Document
from plait.decoders.constrained.schema.references.resources import REFERENCES, Pointer
from plait.decoders.constrained.spec import ConstraintError, Unsatisfiable

_IN_PLACE = ("allOf", "anyOf", "oneOf")


class UnsatisfiableDiagnosis:
    """Explains a schema whose grammar matches nothing.

    Args:
        rules: the grammar's rules.
        names: those rules that stand for a value, by its places.
    """

    def __init__(
        self,
        rules: Mapping[str, Node],
        names: Mapping[SchemaRefs, str],
        document: Document,
        alternatives: Alternatives,
    ) -> None:
        self._rules, self._names = rules, names
        self._users = {name: places for places, name in names.items()}
        self._spots = {name: places for places, name in reversed(list(names.items()))}
        self._document, self._alternatives = document, alternatives

    def error(self) -> ConstraintError:
        """Return the error that says where the fault is, and the keyword if it is one's.

        It follows what cannot be satisfied down as long as one place alone is at fault.
        """
        alive = productive_rules(self._rules)
        spot = self._culprits("root", alive)[0]
        path = {spot}
        while found := self._culprits(spot, alive):
            if len(found) > 1 or len(self._alternatives.of(self._spots[spot])) > 1:
                return self._of_several(spot, found)
            spot = found[0]
            if spot in path:
                reason = "each value would hold another one, without end"
                return Unsatisfiable(self._users[spot][0].pointer, "", reason)
            path.add(spot)
        return self._of_spot(self._spots[spot])

    def _culprits(self, rule: str, alive: Known) -> list[str]:
        """Return the rules of values below for want of which a rule cannot be matched.

        One if it must be there: a required property, an item of those that are asked for.
        """
        several = self._alternatives.of(self._spots[rule]) if rule in self._spots else ()
        for places in _needed(several[0]) if len(several) == 1 else ():
            if self._names.get(places, "root") not in alive | {"root"}:
                return [self._names[places]]
        return self._dead_below(rule, alive)

    def _dead_below(self, rule: str, alive: Known) -> list[str]:
        found: dict[str, None] = {}
        seen = {rule}
        todo = [rule]
        while todo:
            for name in sorted(dead_refs(self._rules[todo.pop()], alive)):
                if name in self._spots:
                    found[name] = None
                elif name not in seen:
                    seen.add(name)
                    todo.append(name)
        return list(found)

    def _of_several(self, spot: str, found: list[str]) -> Unsatisfiable:
        pointers = ", ".join(self._spots[name][0].pointer or "/" for name in found[:3])
        reason = f"none of its alternatives can be satisfied, because of {pointers}"
        return Unsatisfiable(self._spots[spot][0].pointer, "", reason)

    def _of_spot(self, places: SchemaRefs) -> Unsatisfiable:
        several = self._alternatives.of(places)
        if several:
            facts = untyped(several[0])
            keyword, reason = next(self._reasons(facts), ("", "its keywords contradict each other"))
            return Unsatisfiable(facts.pointer, keyword, reason)
        empty = [place for place in places if not self._alternatives.of((place,))]
        if empty:
            return self._of_place(empty[0])
        others = ", ".join(place.pointer or "/" for place in places[:-1])
        return Unsatisfiable(places[-1].pointer, "", f"it contradicts what {others} asks for")

    def _of_place(self, place: SchemaRef) -> Unsatisfiable:
        """Descend into what stands in place: $ref, allOf, and branches if none is possible."""
        seen: set[Pointer] = set()
        pointer = place.pointer
        while pointer not in seen:
            seen.add(pointer)
            inner = [
                at for at in self._in_place(pointer) if not self._alternatives.of((SchemaRef(at),))
            ]
            pointer = inner[0] if inner else pointer
        if self._document.at(pointer) is False:
            return Unsatisfiable(pointer, "", "the schema is false")
        keyword = self._alternatives.conflicts.get(pointer, "")
        if place.negated:
            return Unsatisfiable(pointer, "not", "every value is ruled out")
        return Unsatisfiable(pointer, keyword, "its keywords contradict each other")

    def _in_place(self, pointer: Pointer) -> Iterator[Pointer]:
        schema = self._document.at(pointer)
        if not isinstance(schema, dict):
            return
        for keyword in REFERENCES & schema.keys():
            yield self._document.resolve(schema[keyword], pointer, keyword)
        for keyword in _IN_PLACE:
            places = [f"{pointer}/{keyword}/{i}" for i in range(len(schema.get(keyword, ())))]
            if keyword == "allOf" or len(places) == 1:
                yield from places

    def _reasons(self, facts: Facts) -> Iterator[tuple[str, str]]:
        """Yield keywords of simple assertions that leave nothing, with the reason."""
        if facts.literals is not None:
            reason = "none of its values is allowed by the other keywords"
            if not facts.literals:
                reason = "no value is in each of the lists that apply here"
            yield self._spelled(facts, "const", "enum"), reason
        elif not facts.kinds:
            yield "type", "no type is left"
        for kind in sorted(facts.kinds):
            yield from _KIND[kind](self, facts)

    def _spelled(self, facts: Facts, *keywords: str) -> str:
        """Return the keyword that the schema has, or the last one."""
        schema = self._document.at(facts.pointer)
        found = [k for k in keywords if isinstance(schema, dict) and k in schema]
        return found[0] if found else keywords[-1]

    def _number(self, facts: Facts) -> Iterator[tuple[str, str]]:
        low, high = facts.low, facts.high
        if low is not None and high is not None and low.value >= high.value:
            keyword = self._spelled(facts, "exclusiveMinimum", "minimum")
            yield keyword, f"no number is between {low.value} and {high.value}"
        elif facts.multiples or facts.non_multiples:
            yield "multipleOf", "no multiple is within the bounds"
        elif low is not None or high is not None:
            keywords = ("exclusiveMinimum", "minimum", "exclusiveMaximum", "maximum")
            yield self._spelled(facts, *keywords), "no number is within the bounds"

    def _string(self, facts: Facts) -> Iterator[tuple[str, str]]:
        if facts.max_length is not None and facts.min_length > facts.max_length:
            yield "minLength", f"it is more than maxLength, which is {facts.max_length}"
        else:
            keyword = self._spelled(facts, "pattern", "format", "maxLength")
            yield keyword, "no text has the pattern, the format and the length at once"

    def _array(self, facts: Facts) -> Iterator[tuple[str, str]]:
        if facts.max_items is not None and facts.min_items > facts.max_items:
            yield "minItems", f"it is more than maxItems, which is {facts.max_items}"

    def _object(self, facts: Facts) -> Iterator[tuple[str, str]]:
        required, most = len(facts.required), facts.max_properties
        if most is not None and most < max(required, facts.min_properties):
            keyword = "required" if required > most else "minProperties"
            yield keyword, f"it asks for more properties than maxProperties, which is {most}"
        elif facts.forbidden & set(facts.required):
            name = min(facts.forbidden & set(facts.required))
            yield "required", f"{name!r} is required here and ruled out elsewhere"
        elif facts.names:
            yield "propertyNames", "it does not allow the names that are required"
        elif facts.min_properties:
            yield "minProperties", "there are not as many properties"

    def _any(self, facts: Facts) -> Iterator[tuple[str, str]]:
        if not facts.booleans:
            yield "not", "neither true nor false is left"


def _needed(facts: Facts) -> Iterator[SchemaRefs]:
    """Yield the places of what must be there in each object or array."""
    if "object" in facts.kinds:
        yield from map(facts.value, facts.required)
    if "array" in facts.kinds:
        listed = max((len(rule.prefix) for rule in facts.arrays), default=0)
        yield from map(facts.item, range(min(facts.min_items, listed + 1)))


_KIND = {
    "null": UnsatisfiableDiagnosis._any,
    "boolean": UnsatisfiableDiagnosis._any,
    "integer": UnsatisfiableDiagnosis._number,
    "fraction": UnsatisfiableDiagnosis._number,
    "string": UnsatisfiableDiagnosis._string,
    "array": UnsatisfiableDiagnosis._array,
    "object": UnsatisfiableDiagnosis._object,
}
