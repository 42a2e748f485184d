"""Set operations on facts: membership, emptiness, difference, exactly as JSON Schema says.

Emptiness and membership may give up (Unprovable or "not empty"), never guess: what exclude returns
holds no value of the unwanted facts. It may return less than the exact difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_CHAR, Expr
from plait.decoders.constrained.schema.facts import (
    NUMBERS,
    ContainsRule,
    Facts,
    Kind,
    Literals,
    MemberRule,
    SchemaRef,
    SchemaRefs,
    declared_names,
    is_multiple,
    json_key,
    kind_of,
    meet,
    merged_refs,
)
from plait.decoders.constrained.schema.formats import is_exact
from plait.decoders.constrained.schema.sets.membership import ADMITS
from plait.decoders.constrained.schema.sets.outside import (
    Unprovable,
    counts_outside,
    items_outside,
    lengths_outside,
    numbers_outside,
    objects_outside,
    structure_of,
    texts_outside,
    without_literals,
)

MAX_STATES = 500  # of the automata that emptiness of texts is decided with
MAX_QUESTIONS = 50_000  # about emptiness, of one schema: a few seconds
MAX_PARTS = 64  # of values that are ruled out by their parts
MAX_LEVELS = 4  # how deep emptiness looks into objects and arrays


class Algebra:
    """Questions about facts.

    Args:
        alternatives: the alternatives of what lies below.
        is_exact: whether those are all there are (see alternatives.Alternatives).
        place_of: a place where a value alone is valid (see references.document.Document).
    """

    def __init__(
        self,
        alternatives: Callable[[SchemaRefs], tuple[Facts, ...]],
        is_exact: Callable[[SchemaRefs], bool],
        place_of: Callable[[Any, str], str],
    ) -> None:
        self._alternatives = alternatives
        self._is_exact = is_exact
        self._place_of = place_of
        self._num_questions = 0  # about emptiness

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
        return ADMITS[kind](self.admits_below, facts, value)

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
        self._num_questions += 1
        if self._num_questions > MAX_QUESTIONS:
            raise Unprovable("it takes too many comparisons; use fewer or disjoint branches")
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
        if any(self._is_too_few(facts, rule, levels) for rule in facts.contains):
            return True
        if facts.unique and not any(rule.prefix for rule in facts.arrays):
            values = self.values(facts.item(0)) if facts.arrays else None
            if values is not None and len(values) < facts.min_items:
                return True
        exempt = frozenset(rule.places for rule in facts.contains)
        checked = min(facts.min_items, 1 + max((len(r.prefix) for r in facts.arrays), default=0))
        return any(self._is_nothing(facts.item(index, exempt), levels) for index in range(checked))

    def _is_too_few(self, facts: Facts, rule: ContainsRule, levels: int) -> bool:
        """Tell whether provably no array holds as many items as a rule asks for."""
        if not rule.least:
            return False
        most = [number for number in (rule.most, facts.max_items) if number is not None]
        room = min(most, default=rule.least)
        if facts.max_items is not None:
            room = min(room, facts.max_items - rule.start)
        return rule.least > room or self._is_nothing(rule.places, levels)

    def _is_object_empty(self, facts: Facts, levels: int) -> bool:
        needed = max(facts.min_properties, len(facts.required))
        if facts.max_properties is not None and facts.max_properties < needed:
            return True
        if not facts.forbidden.isdisjoint(facts.required):
            return True
        if any(self._is_broken_nowhere(facts, rule, levels) for rule in facts.members):
            return True
        return any(self._is_nothing(facts.value(name), levels) for name in facts.required)

    def _is_broken_nowhere(self, facts: Facts, rule: MemberRule, levels: int) -> bool:
        """Tell whether provably no object has a property as a rule asks for."""
        if facts.max_properties == 0 or self._is_nothing(rule.places, levels):
            return True
        for name in declared_names(facts):
            if regex.matches(rule.keys, name):
                places = merged_refs(facts.value(name), rule.places)
                if not self._is_nothing(places, levels):
                    return False
        taken = regex.union(map(regex.literal, declared_names(facts)))
        keys = regex.intersection(rule.keys, regex.complement(taken))
        for closed in facts.objects:
            if closed.extra is not None and self._is_nothing(closed.extra, levels):
                patterns = regex.union(expr for expr, _ in closed.patterns)
                keys = regex.intersection(keys, patterns)
        return _is_expr_empty(keys)

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
        if unwanted.literals is not None and kind in ("array", "object"):
            apart = self._without_values(facts, unwanted, kind)
            if apart is not None:
                return apart
        pieces = list(self._pieces(facts, unwanted, kind))
        if not pieces and kind == "object" and self._is_covered(unwanted, kind):
            return [], True
        if not pieces:
            raise Unprovable("the alternatives overlap, and cannot be told apart")
        kept = [piece for piece in pieces if not self.is_empty(piece)]
        return kept, self._is_covered(unwanted, kind)

    def _without_values(
        self, facts: Facts, unwanted: Facts, kind: Kind
    ) -> tuple[list[Facts], bool] | None:
        """Exclude listed arrays or objects part by part; None: they have too many parts."""
        found, is_all = [facts], self._is_decided(unwanted, kind)
        for value in (unwanted.literals or {}).values():
            if kind_of(value) != kind or not self._may_admit(unwanted, value):
                continue
            listed = structure_of(value, lambda p: SchemaRef(self._place_of(p, unwanted.pointer)))
            parts = [self._exclude_kind(each, listed, kind) for each in found]
            found = [piece for pieces, _ in parts for piece in pieces]
            is_all &= all(is_covered for _, is_covered in parts)
            if len(found) > MAX_PARTS:
                return None
        return found, is_all

    def _is_covered(self, unwanted: Facts, kind: Kind) -> bool:
        """Tell whether `_pieces` breaks every assertion that there is."""
        if unwanted.literals is not None:
            return self._is_decided(unwanted, kind)
        if kind == "array":
            places = [each for rule in unwanted.arrays for each in (*rule.prefix, rule.rest)]
            is_plain = not any(rule.unless for rule in unwanted.arrays)
            return (
                is_plain
                and not unwanted.unique
                and all(map(self._is_negatable, filter(None, places)))
            )
        if kind == "string":
            return all(map(is_exact, unwanted.formats))
        return kind != "object" or self._is_object_covered(unwanted)

    def _is_object_covered(self, unwanted: Facts) -> bool:
        said: list[SchemaRefs] = [(place,) for place in unwanted.names]
        for rule in unwanted.objects:
            said += [*rule.named.values(), *(places for _, places in rule.patterns)]
            said.append(rule.extra or ())
        if any(rule.names and rule.places for rule in unwanted.members):
            return False
        said += [rule.names or rule.places for rule in unwanted.members]
        return all(map(self._is_negatable, filter(None, said)))

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
        return len(places) == 1 and self._is_exact(places)

    def _pieces(self, facts: Facts, unwanted: Facts, kind: Kind) -> Iterator[Facts]:
        """Yield parts of the facts that break one assertion of `unwanted` each."""
        if unwanted.literals is not None:
            values = [v for v in unwanted.literals.values() if kind_of(v) == kind]
            allowed = [v for v in values if all(self._may_admit(f, v) for f in (facts, unwanted))]
            yield from without_literals(facts, allowed, unwanted.pointer) if allowed else [facts]
        elif kind == "boolean":
            yield replace(facts, booleans=facts.booleans - unwanted.booleans)
        elif kind in NUMBERS:
            yield from numbers_outside(facts, unwanted)
        elif kind == "string":
            yield from texts_outside(facts, unwanted)
        elif kind == "array":
            yield from lengths_outside(facts, unwanted)
            yield from items_outside(facts, unwanted, self._is_negatable)
            yield from counts_outside(facts, unwanted)
        else:
            yield from objects_outside(facts, unwanted, self._is_negatable)


def _of_kinds(facts: Facts, kinds: Set[Kind]) -> Facts:
    return replace(facts, kinds=facts.kinds & kinds, is_typed=True)


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
    return _is_expr_empty(text_of(facts))


def _is_expr_empty(expr: Expr) -> bool:
    """Tell whether provably no text is in a set."""
    try:
        return regex.is_empty_set(expr, max_states=MAX_STATES)
    except regex.TooManyStates:
        return False


def text_of(facts: Facts) -> Expr:
    """Return the texts that pattern and length allow; formats are left out."""
    if not facts.min_length and facts.max_length is None:
        return facts.text
    return regex.intersection(facts.text, regex.times(ANY_CHAR, facts.min_length, facts.max_length))
