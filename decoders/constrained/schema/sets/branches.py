"""Finds branches of anyOf and oneOf that may overlap, without comparing each pair.

Fixed values (const, enum) become one alternative. Of the rest only those branches are told apart
that may overlap: a branch is found by the kinds of its values, by the values themselves where it
lists them, and for objects by a property that they require and whose values are listed, as a
discriminator's are. Law: branches that share nothing of this have no value in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.schema.facts import (
    Facts,
    Kind,
    Literals,
    SchemaRefs,
    json_key,
    kind_of,
)
from plait.decoders.constrained.schema.sets.algebra import Algebra
from plait.decoders.constrained.schema.sets.outside import Unprovable

MAX_DISCRIMINATORS = 8  # names of properties that are tried

Several = tuple[Facts, ...]
Keys = frozenset[Hashable]
Values = Callable[[SchemaRefs], Literals | None]  # Algebra.values


def literals_of(facts: Facts, algebra: Algebra) -> Literals | None:
    """Return the values that the facts allow; None: they list none, or one cannot be judged."""
    if facts.literals is None:
        return None
    if not facts.mentions():
        return {k: v for k, v in facts.literals.items() if kind_of(v) in facts.kinds}
    others = replace(facts, literals=None)  # each of them is one of them
    try:
        return {k: v for k, v in facts.literals.items() if algebra.admits(others, v)}
    except Unprovable:
        return None


def of_literals(literals: Literals, pointer: str) -> Several:
    """Return the alternative of these values; none for no value."""
    kinds = frozenset(map(kind_of, literals.values()))
    return (Facts(kinds, is_typed=True, literals=literals, pointer=pointer),) if kinds else ()


def folded(several: Several, algebra: Algebra, pointer: str) -> Several:
    """Return the alternatives with all fixed values in one of them. Cost: one look at each."""
    if sum(facts.literals is not None for facts in several) < 2:
        return several
    values: dict[Hashable, Any] = {}
    others = []
    for facts in several:
        literals = literals_of(facts, algebra)
        if literals is None:
            others.append(facts)
        for key, value in (literals or {}).items():
            values.setdefault(key, value)
    return (*of_literals(values, pointer), *others)


def once_and_all(lists: Sequence[Literals]) -> tuple[Literals, Literals]:
    """Return the values that exactly one of the lists holds, and all of them."""
    counts = Counter(key for found in lists for key in found)
    values = {key: value for found in lists for key, value in found.items()}
    return {key: value for key, value in values.items() if counts[key] == 1}, values


class FreeKinds:
    """The kinds of which some branches allow every value."""

    def __init__(self, branches: Sequence[Several]) -> None:
        self._free: dict[Kind, set[int]] = {}
        for index, branch in enumerate(branches):
            for kind in {kind for facts in branch for kind in facts.kinds if facts.is_free(kind)}:
                self._free.setdefault(kind, set()).add(index)

    def taken(self, several: Several, index: int) -> Several:
        """Return the alternatives of a branch without the kinds that another one has whole."""
        lost = {kind for kind, free in self._free.items() if free - {index}}
        found = []
        for facts in several:
            if facts.kinds.isdisjoint(lost):
                found.append(facts)
            elif kinds := facts.kinds - lost:
                found.append(replace(facts, kinds=kinds, is_typed=True))
        return tuple(found)


class Overlaps:
    """Which of several branches may have values in common."""

    def __init__(self, branches: Sequence[Several | None], values: Values) -> None:
        """Index the branches; None: nothing is known of one. Cost: one look at each of them."""
        self._values = values
        self._name = _discriminator([f for branch in branches for f in branch or ()], values)
        self._unknown: set[int] = set()
        self._of_kind: dict[Kind, set[int]] = {}
        self._unlisted: dict[Kind, set[int]] = {}  # those of a kind that list no values of it
        self._listed: dict[tuple[Kind, Hashable], set[int]] = {}
        for index, branch in enumerate(branches):
            if branch is None:
                self._unknown.add(index)
            for facts in branch or ():
                self._add(facts, index)

    def _add(self, facts: Facts, index: int) -> None:
        for kind, keys in self._marks(facts):
            self._of_kind.setdefault(kind, set()).add(index)
            if keys is None:
                self._unlisted.setdefault(kind, set()).add(index)
            for key in keys or ():
                self._listed.setdefault((kind, key), set()).add(index)

    def of(self, several: Several, index: int) -> list[int]:
        """Return the other branches that hold values of branch `index`, perhaps, in order.

        several: what is left of that branch's alternatives.
        """
        found = set(self._unknown)
        for facts in several:
            for kind, keys in self._marks(facts):
                if keys is None:
                    found |= self._of_kind.get(kind, set())
                    continue
                found |= self._unlisted.get(kind, set())
                for key in keys:
                    found |= self._listed.get((kind, key), set())
        return sorted(found - {index})

    def _marks(self, facts: Facts) -> Iterator[tuple[Kind, Keys | None]]:
        """Yield each kind of the facts with the keys of its values; None: they are not listed.

        Of objects these are the keys of the discriminator's values.
        """
        listed: dict[Kind, set[Hashable]] = {kind: set() for kind in facts.kinds}
        for key, value in (facts.literals or {}).items():
            kind = kind_of(value)
            if kind in listed:
                listed[kind].add(self._key_of_object(value) if kind == "object" else key)
        for kind in facts.kinds:
            if facts.literals is not None and (kind != "object" or self._name is not None):
                yield kind, frozenset(listed[kind])
            elif kind == "boolean":
                yield kind, frozenset(map(json_key, facts.booleans))
            else:
                yield kind, self._keys_of_property(facts) if kind == "object" else None

    def _key_of_object(self, value: dict[str, Any]) -> Hashable:
        return json_key(value[self._name]) if self._name in value else ("absent",)

    def _keys_of_property(self, facts: Facts) -> Keys | None:
        if self._name is None or self._name not in facts.required:
            return None
        found = self._values(facts.value(self._name))
        return None if found is None else frozenset(found)


def _discriminator(several: Sequence[Facts], values: Values) -> str | None:
    """Return the required property that lists its values in most of the alternatives."""
    objects = [facts for facts in several if "object" in facts.kinds and facts.literals is None]
    counts = Counter(name for facts in objects for name in facts.required)
    best, most = None, 0
    for name, count in counts.most_common(MAX_DISCRIMINATORS):
        if count <= most:
            break
        having = [facts for facts in objects if name in facts.required]
        listed = sum(values(facts.value(name)) is not None for facts in having)
        if listed > most:
            best, most = name, listed
    return best
