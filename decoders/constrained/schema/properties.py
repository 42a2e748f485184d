"""Objects before they are grammar rules: which properties may be there, and which must.

Where a negation asks for a property that breaks a rule (`Facts.members`), it may be any one of the
declared ones or an undeclared one: each choice is an object of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from plait.decoders.constrained.grammar import json_text, regex
from plait.decoders.constrained.grammar.nodes import (
    NOTHING,
    LiteralText,
    Node,
    alternation,
    is_nothing,
    seq,
)
from plait.decoders.constrained.grammar.regex import ANY_TEXT, Expr
from plait.decoders.constrained.schema.alternatives import Alternatives
from plait.decoders.constrained.schema.facts import (
    Facts,
    MemberRule,
    SchemaRefs,
    declared_names,
    kind_of,
    merged_refs,
    with_property,
)
from plait.decoders.constrained.schema.formats import with_formats
from plait.decoders.constrained.schema.objects import (
    DeclaredProperty,
    ObjectRules,
    key_classes,
    member,
)
from plait.decoders.constrained.schema.sets.algebra import text_of
from plait.decoders.constrained.schema.sets.outside import Unprovable
from plait.decoders.constrained.spec import JsonStyle, Objects, UnsupportedKeyword

MAX_CASES = 256  # of one object: which properties break which rules
_QUOTE = LiteralText('"')


@dataclass(frozen=True, slots=True)
class ObjectCase:
    """An object, and the undeclared properties that it must have; `facts` ask for none beside."""

    facts: Facts
    due: tuple[MemberRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectWriter:
    """Writes one object."""

    name: str
    facts: Facts
    value: Callable[[SchemaRefs], Node]  # the node of a value at some places
    text: Callable[[Expr, Facts, str], Node]  # of a key, inside its quotes
    define: Callable[[str, Node], None]
    alternatives: Alternatives
    style: JsonStyle

    def node(self) -> Node:
        """Return the object's node; its rules are defined on the way.

        Raises:
            UnsupportedKeyword: keys that cannot be told apart, or too many choices.
        """
        if not self.facts.members:
            return self._case(ObjectCase(self.facts), self.name)
        cases = self._cases()
        return alternation([self._case(case, f"{self.name}{i}") for i, case in enumerate(cases)])

    def _cases(self) -> list[ObjectCase]:
        found = [ObjectCase(replace(self.facts, members=()))]
        for rule in self.facts.members:
            found = [case for each in found for case in self._broken(each, rule)]
            if len(found) > MAX_CASES:
                pointer, _, keyword = rule.pointer.rpartition("/")
                reason = f"its negation makes more than {MAX_CASES} kinds of objects"
                raise UnsupportedKeyword(pointer, keyword, reason)
        return found

    def _broken(self, case: ObjectCase, rule: MemberRule) -> Iterator[ObjectCase]:
        """Yield the objects that have a property as a rule asks for."""
        for name in declared_names(case.facts):
            if regex.matches(rule.keys, name) and self._is_name(rule.names, name):
                yield ObjectCase(with_property(case.facts, name, rule.places), case.due)
        for index, other in enumerate(case.due):
            both = replace(
                other,
                keys=regex.intersection(other.keys, rule.keys),
                names=merged_refs(other.names, rule.names),
                places=merged_refs(other.places, rule.places),
            )
            yield ObjectCase(case.facts, (*case.due[:index], both, *case.due[index + 1 :]))
        yield ObjectCase(case.facts, (*case.due, rule))

    def _case(self, case: ObjectCase, name: str) -> Node:
        facts = case.facts
        names = [key for key in declared_names(facts) if self._is_name(facts.names, key)]
        required = set(facts.required)
        due = [self._undeclared(facts, "open", rule) for rule in case.due]
        if not required <= set(names) or any(map(is_nothing, due)):
            return NOTHING
        members = [
            DeclaredProperty(
                member(json_text.literal(key), self.value(facts.value(key))), key in required
            )
            for key in names
        ]
        counts = facts.min_properties > len(facts.required) + 1
        is_asked = self.style.objects == "open" or self.style.key_order == "any"
        rules = ObjectRules(
            f"{name}o",
            facts.pointer,
            members,
            self._undeclared(facts, self.style.objects),
            facts.min_properties,
            facts.max_properties,
            self.define,
            is_distinct=counts or is_asked,
            due=due,
            due_pointers=tuple(rule.pointer for rule in case.due),
        )
        return rules.in_any_order() if self.style.key_order == "any" else rules.node()

    def _is_name(self, places: SchemaRefs, key: str) -> bool:
        if not places:
            return True
        try:
            return self.alternatives.algebra.admits_below(places, key)
        except Unprovable as error:
            raise UnsupportedKeyword(self.facts.pointer, "propertyNames", str(error)) from None

    def _undeclared(
        self, facts: Facts, objects: Objects | None, rule: MemberRule | None = None
    ) -> Node:
        """Return one undeclared member, whatever its class; of those that a rule asks for."""
        rule = rule or MemberRule(ANY_TEXT)
        found = []
        for keys in key_classes(facts, self.alternatives.of, objects):
            places = merged_refs(keys.places, rule.places)
            for allowed in self._key_texts(merged_refs(facts.names, rule.names)):
                expr = regex.intersection(regex.intersection(keys.keys, allowed), rule.keys)
                text = self.text(expr, facts, "patternProperties")
                found.append(member(seq(_QUOTE, text, _QUOTE), self.value(places)))
        return alternation(found)

    def _key_texts(self, places: SchemaRefs) -> list[Expr]:
        """Return what propertyNames allow, one text for each of their alternatives."""
        if not places:
            return [ANY_TEXT]
        found = []
        for names in self.alternatives.of(places):
            if "string" not in names.kinds:
                continue
            for obstacle in names.obstacles:
                if obstacle.kind == "string":
                    pointer = self.facts.pointer
                    raise UnsupportedKeyword(pointer, "propertyNames", obstacle.reason)
            text = text_of(with_formats(names))
            if names.literals is not None:
                literals = [v for v in names.literals.values() if kind_of(v) == "string"]
                text = regex.intersection(text, regex.union(map(regex.literal, literals)))
            found.append(text)
        return found
