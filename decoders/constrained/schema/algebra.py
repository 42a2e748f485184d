"""Set operations on facts: membership, emptiness, difference, exactly as JSON Schema says.

Emptiness and membership may give up (Unprovable or "not empty"), never guess: what exclude returns
holds no value of the unwanted facts. It may return less than the exact difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from itertools import pairwise
from typing import Any

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_CHAR, ANY_TEXT, EMPTY_SET, Expr
from plait.decoders.constrained.schema.facts import (
    NUMBERS,
    Bound,
    Facts,
    Kind,
    Literals,
    ObjectRule,
    Obstacle,
    SchemaRef,
    SchemaRefs,
    decimal_of,
    is_multiple,
    json_key,
    kind_of,
    meet,
)
from plait.decoders.constrained.schema.formats import NUMBER_FORMATS, is_exact, possible, valid

MAX_STATES = 500  # of the automata that emptiness of texts is decided with
MAX_GAPS = 64  # numbers that are left out one by one
MAX_LEVELS = 4  # how deep emptiness looks into objects and arrays


class Unprovable(Exception):
    """The question is beyond what can be decided here; the message says why."""


class Algebra:
    """Questions about facts.

    Args:
        alternatives: the alternatives of what lies below.
        is_exact: whether those are all there are (see alternatives.Alternatives).
    """

    def __init__(
        self,
        alternatives: Callable[[SchemaRefs], tuple[Facts, ...]],
        is_exact: Callable[[SchemaRefs], bool],
    ) -> None:
        self._alternatives = alternatives
        self._is_exact = is_exact

    def admits(self, facts: Facts, value: Any) -> bool:
        """Tell whether a JSON value satisfies the facts.

        Raises:
            Unprovable: a format, or a keyword that can't be judged, decides.
        """
        kind = kind_of(value)
        if kind not in facts.kinds:
            return False
        if facts.literals is not None and json_key(value) not in facts.literals:
            return False
        obstacles = [obstacle for obstacle in facts.obstacles if obstacle.kind == kind]
        if any(o.judge is not None and not o.judge(value) for o in obstacles):
            return False
        if any(obstacle.judge is None for obstacle in obstacles):
            raise Unprovable("one of its keywords cannot be decided")
        return _ADMITS[kind](self, facts, value)

    def admits_below(self, places: SchemaRefs, value: Any) -> bool:
        """Tell whether a value below satisfies one of the alternatives of its places."""
        found = any(self.admits(facts, value) for facts in self._alternatives(places))
        if not found and not self._is_exact(places):
            raise Unprovable("a negation inside a negation cannot be decided")
        return found

    def values(self, places: SchemaRefs) -> Literals | None:
        """Return the values that can stand below; None: they are not listed."""
        try:
            several = self._alternatives(places)
        except Unprovable:
            return None
        lists = [facts.literals for facts in several if facts.literals is not None]
        if len(lists) < len(several) or not self._is_exact(places):
            return None
        return lists[0] if len(lists) == 1 else {k: v for found in lists for k, v in found.items()}

    def is_empty(self, facts: Facts, levels: int = MAX_LEVELS) -> bool:
        """Tell whether provably no value satisfies the facts."""
        return all(self._is_kind_empty(facts, kind, levels) for kind in facts.kinds)

    def _is_kind_empty(self, facts: Facts, kind: Kind, levels: int) -> bool:
        if facts.literals is not None:
            values = facts.literals.values()
            return not any(self._may_admit(facts, v) for v in values if kind_of(v) == kind)
        if kind == "boolean":
            return not facts.booleans
        if kind in NUMBERS:
            return _is_range_empty(facts)
        if kind == "string":
            return _is_text_empty(facts)
        if kind == "array":
            return self._is_array_empty(facts, levels)
        return kind == "object" and self._is_object_empty(facts, levels)

    def _may_admit(self, facts: Facts, value: Any) -> bool:
        try:
            return self.admits(facts, value)
        except Unprovable:
            return True

    def _is_array_empty(self, facts: Facts, levels: int) -> bool:
        if facts.max_items is not None and facts.min_items > facts.max_items:
            return True
        checked = min(facts.min_items, 1 + max((len(r.prefix) for r in facts.arrays), default=0))
        return any(self._is_nothing(facts.item(index), levels) for index in range(checked))

    def _is_object_empty(self, facts: Facts, levels: int) -> bool:
        if facts.max_properties is not None and facts.max_properties < len(facts.required):
            return True
        if not facts.forbidden.isdisjoint(facts.required):
            return True
        return any(self._is_nothing(facts.value(name), levels) for name in facts.required)

    def _is_nothing(self, places: SchemaRefs, levels: int) -> bool:
        """Tell whether provably nothing satisfies the places below."""
        if not levels or not self._is_exact(places):
            return False
        return all(self.is_empty(facts, levels - 1) for facts in self._alternatives(places))

    def exclude(self, facts: Facts, unwanted: Facts) -> tuple[list[Facts], bool]:
        """Return alternatives for the facts without the values of `unwanted`, and whether those
        are all such values.

        Raises:
            Unprovable: no part of a kind could be told apart.
        """
        if facts.literals is not None:
            kept = {k: v for k, v in facts.literals.items() if not self.admits(unwanted, v)}
            kinds = frozenset(map(kind_of, kept.values())) & facts.kinds
            return ([replace(facts, literals=kept, kinds=kinds)] if kept else []), True
        found = []
        is_all = True
        shared = facts.kinds & unwanted.kinds
        if apart := facts.kinds - shared:
            found.append(_of_kinds(facts, apart))
        for kind in sorted(shared):
            pieces, is_covered = self._exclude_kind(_of_kinds(facts, {kind}), unwanted, kind)
            found += pieces
            is_all &= is_covered
        return found, is_all

    def _exclude_kind(self, facts: Facts, unwanted: Facts, kind: Kind) -> tuple[list[Facts], bool]:
        if unwanted.is_free(kind) or (kind == "null" and not self.is_empty(unwanted)):
            return [], True
        both = meet(facts, _of_kinds(unwanted, facts.kinds))
        if both is None or self.is_empty(both):
            return [facts], True
        if any(obstacle.kind == kind for obstacle in unwanted.obstacles):
            raise Unprovable("what it rules out holds a keyword that cannot be negated")
        pieces = list(self._pieces(facts, unwanted, kind))
        if not pieces and kind == "object" and self._is_covered(unwanted, kind):
            return [], True
        if not pieces:
            raise Unprovable("the alternatives overlap, and cannot be told apart")
        kept = [piece for piece in pieces if not self.is_empty(piece)]
        return kept, self._is_covered(unwanted, kind)

    def _is_covered(self, unwanted: Facts, kind: Kind) -> bool:
        """Tell whether `_pieces` breaks every assertion that there is."""
        if unwanted.literals is not None:
            return self._is_decided(unwanted, kind)
        if kind == "array":
            return not unwanted.arrays
        if kind == "string":
            return all(map(is_exact, unwanted.formats))
        return kind != "object" or self._is_object_covered(unwanted)

    def _is_object_covered(self, unwanted: Facts) -> bool:
        if unwanted.names or unwanted.max_properties is not None:
            return False
        rules = unwanted.objects
        if any(rule.patterns or rule.extra is not None for rule in rules):
            return False
        return all(self._is_negatable(unwanted.value(n)) for rule in rules for n in rule.named)

    def _is_decided(self, unwanted: Facts, kind: Kind) -> bool:
        """Tell whether each literal of the kind can be judged by what stands beside it."""
        try:
            for value in (unwanted.literals or {}).values():
                if kind_of(value) == kind:
                    self.admits(unwanted, value)
        except Unprovable:
            return False
        return True

    def _is_negatable(self, places: SchemaRefs) -> bool:
        return len(places) == 1 and not places[0].negated and self._is_exact(places)

    def _pieces(self, facts: Facts, unwanted: Facts, kind: Kind) -> Iterator[Facts]:
        """Yield parts of the facts that break one assertion of `unwanted` each."""
        if unwanted.literals is not None:
            values = [v for v in unwanted.literals.values() if kind_of(v) == kind]
            allowed = [v for v in values if all(self._may_admit(f, v) for f in (facts, unwanted))]
            yield from _without_literals(facts, allowed, unwanted.pointer) if allowed else [facts]
        elif kind == "boolean":
            yield replace(facts, booleans=facts.booleans - unwanted.booleans)
        elif kind in NUMBERS:
            yield from _numbers_outside(facts, unwanted)
        elif kind == "string":
            yield from _texts_outside(facts, unwanted)
        elif kind == "array":
            yield from _arrays_outside(facts, unwanted)
        else:
            yield from self._objects_outside(facts, unwanted)

    def _objects_outside(self, facts: Facts, unwanted: Facts) -> Iterator[Facts]:
        for name in unwanted.required:
            if name not in facts.required:
                yield replace(facts, forbidden=facts.forbidden | {name})
        for name in sorted(unwanted.forbidden):
            yield replace(facts, required=(*facts.required, name))
        for name in dict.fromkeys(n for rule in unwanted.objects for n in rule.named):
            places = unwanted.value(name)
            if self._is_negatable(places):
                negated = SchemaRef(places[0].pointer, negated=True)
                rule = ObjectRule({name: (negated,)}, evaluates=False)
                required = tuple(dict.fromkeys((*facts.required, name)))
                yield replace(facts, required=required, objects=(*facts.objects, rule))
        if unwanted.min_properties:
            yield replace(facts, max_properties=unwanted.min_properties - 1)


def _of_kinds(facts: Facts, kinds: Set[Kind]) -> Facts:
    return replace(facts, kinds=facts.kinds & kinds, is_typed=True)


def _without_literals(facts: Facts, values: list[Any], pointer: str) -> Iterator[Facts]:
    kind = kind_of(values[0])
    if kind == "boolean":
        yield replace(facts, booleans=facts.booleans - set(values))
    elif kind == "string":
        named = regex.union(regex.literal(value) for value in values)
        yield replace(facts, text=regex.intersection(facts.text, regex.complement(named)))
    elif kind in ("array", "object"):
        others = _not_among(values, kind, pointer)
        yield replace(facts, obstacles=(*facts.obstacles, others))
    elif kind in NUMBERS and len(values) <= MAX_GAPS:
        bounds = [Bound(value, is_open=True) for value in sorted(map(decimal_of, values))]
        for low, high in pairwise([None, *bounds, None]):
            if (part := meet(facts, Facts(low=low, high=high))) is not None:
                yield part
    else:
        raise Unprovable(f"{kind} values cannot be excluded one by one")


def _not_among(values: list[Any], kind: Kind, pointer: str) -> Obstacle:
    """Return what rules values out: one by one in a list that is given, arrays by length else."""
    keys, lengths = set(map(json_key, values)), [len(value) for value in values]
    listed = Facts(min_items=min(lengths), max_items=max(lengths))
    apart = tuple(_arrays_outside(Facts(), listed)) if kind == "array" else ()
    reason = f"{kind} values cannot be excluded one by one"
    keyword = "const" if len(values) == 1 else "enum"
    return Obstacle(kind, pointer, keyword, reason, lambda v: json_key(v) not in keys, apart)


def _numbers_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    if any(name in NUMBER_FORMATS for name in unwanted.formats):
        raise Unprovable("a format cannot be negated")
    if unwanted.low is not None:
        below = Bound(unwanted.low.value, not unwanted.low.is_open)
        if (part := meet(facts, Facts(high=below))) is not None:
            yield part
    if unwanted.high is not None:
        above = Bound(unwanted.high.value, not unwanted.high.is_open)
        if (part := meet(facts, Facts(low=above))) is not None:
            yield part
    for multiple in unwanted.multiples:
        yield replace(facts, non_multiples=(*facts.non_multiples, multiple))
    for multiple in unwanted.non_multiples:
        yield replace(facts, multiples=(*facts.multiples, multiple))


def _texts_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    for name in unwanted.formats:
        if (others := regex.complement(possible(name))) is not EMPTY_SET:
            yield replace(facts, text=regex.intersection(facts.text, others))
    if unwanted.text is not ANY_TEXT:
        yield replace(facts, text=regex.intersection(facts.text, regex.complement(unwanted.text)))
    if unwanted.min_length:
        shorter = Facts(max_length=unwanted.min_length - 1)
        if (part := meet(facts, shorter)) is not None:
            yield part
    if unwanted.max_length is not None:
        longer = Facts(min_length=unwanted.max_length + 1)
        if (part := meet(facts, longer)) is not None:
            yield part


def _arrays_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    if unwanted.min_items:
        shorter = Facts(max_items=unwanted.min_items - 1)
        if (part := meet(facts, shorter)) is not None:
            yield part
    if unwanted.max_items is not None:
        longer = Facts(min_items=unwanted.max_items + 1)
        if (part := meet(facts, longer)) is not None:
            yield part


def _is_range_empty(facts: Facts) -> bool:
    if any(is_multiple(m, other) for m in facts.multiples for other in facts.non_multiples):
        return True
    low, high = facts.low, facts.high
    if low is None or high is None or low.value < high.value:
        return False
    return low.value > high.value or low.is_open or high.is_open


def _is_text_empty(facts: Facts) -> bool:
    if facts.max_length is not None and facts.min_length > facts.max_length:
        return True
    try:
        return regex.is_empty_set(text_of(facts), max_states=MAX_STATES)
    except regex.TooManyStates:
        return False


def text_of(facts: Facts) -> Expr:
    """Return the texts that pattern and length allow; formats are left out."""
    if not facts.min_length and facts.max_length is None:
        return facts.text
    return regex.intersection(facts.text, regex.times(ANY_CHAR, facts.min_length, facts.max_length))


def _admits_number(_: Algebra, facts: Facts, value: Any) -> bool:
    number = decimal_of(value)
    low, high = facts.low, facts.high
    if low is not None and (number < low.value or (low.is_open and number == low.value)):
        return False
    if high is not None and (number > high.value or (high.is_open and number == high.value)):
        return False
    if any(is_multiple(number, other) for other in facts.non_multiples):
        return False
    return all(is_multiple(number, multiple) for multiple in facts.multiples)


def _admits_text(_: Algebra, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_length:
        return False
    if facts.text is not ANY_TEXT and not regex.matches(facts.text, value):
        return False
    if facts.max_length is not None and len(value) > facts.max_length:
        return False
    if not all(regex.matches(possible(name), value) for name in facts.formats):
        return False
    for name in facts.formats:
        if not regex.matches(valid(name), value):
            reason = f"it is not certain whether {value!r} has the format {name!r}"
            raise Unprovable(f"{reason}; leave the format out where the texts are given")
    return True


def _admits_array(algebra: Algebra, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_items:
        return False
    if facts.max_items is not None and len(value) > facts.max_items:
        return False
    return all(algebra.admits_below(facts.item(i), item) for i, item in enumerate(value))


def _admits_object(algebra: Algebra, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_properties or not set(facts.required) <= value.keys():
        return False
    if facts.max_properties is not None and len(value) > facts.max_properties:
        return False
    if not facts.forbidden.isdisjoint(value):
        return False
    if facts.names and not all(algebra.admits_below(facts.names, name) for name in value):
        return False
    return all(algebra.admits_below(facts.value(name), item) for name, item in value.items())


_ADMITS: dict[Kind, Callable[[Algebra, Facts, Any], bool]] = {
    "null": lambda algebra, facts, value: True,
    "boolean": lambda algebra, facts, value: value in facts.booleans,
    "integer": _admits_number,
    "fraction": _admits_number,
    "string": _admits_text,
    "array": _admits_array,
    "object": _admits_object,
}
