"""Arrays as grammar rules: the listed items first, then the others, as many as allowed.

Where `contains` counts items, an array is a row of rules, named after how far it has come: the
index, as far as it matters, and the items counted so far of each `contains`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from plait.decoders.constrained.grammar import json_text
from plait.decoders.constrained.grammar.json_text import COMMA, WS
from plait.decoders.constrained.grammar.nodes import (
    DISTINCT,
    EMPTY,
    GROWING,
    NOTHING,
    Item,
    LiteralText,
    Mark,
    Node,
    Ref,
    alternation,
    repeat,
    seq,
)
from plait.decoders.constrained.schema.facts import (
    ContainsRule,
    Facts,
    Literals,
    SchemaRefs,
    merged_refs,
    negation,
)
from plait.decoders.constrained.schema.sets.algebra import Algebra
from plait.decoders.constrained.schema.sets.outside import Unprovable
from plait.decoders.constrained.spec import JsonStyle, UnsupportedKeyword, plain_pointer

MAX_COUNT = 100_000  # longest array or string that is told apart from an endless one
MAX_COUNTED = 5_000  # rules of one array whose items are counted

MAX_DISTINCT = 256  # values of which distinct items are told apart by the grammar itself

_CLOSE, _END = LiteralText("]"), seq(WS, LiteralText("]"))
Counts = tuple[int, ...]  # items counted, one number for each rule of contains, capped


def repeated(item: Node, least: int, most: int | None, facts: Facts, keyword: str) -> Node:
    """Return the item least..most times, most capped at MAX_COUNT.

    Raises:
        UnsupportedKeyword: least is beyond it.
    """
    if least > MAX_COUNT:
        reason = f"more than {MAX_COUNT} are not supported"
        raise UnsupportedKeyword(facts.pointer, keyword, reason)
    return repeat(item, least, None if most is None else min(most, MAX_COUNT))


@dataclass(frozen=True, slots=True)
class ArrayRules:
    """Writes one array."""

    name: str
    facts: Facts
    value: Callable[[SchemaRefs], Node]  # the node of a value at some places
    define: Callable[[str, Node], None]
    algebra: Algebra
    style: JsonStyle

    def node(self) -> Node:
        """Return the array's node; the rules of one with `contains` are defined on the way.

        Raises:
            UnsupportedKeyword: too many items are to be counted.
        Cost: linear in the listed items; with contains, times the counts that matter.
        """
        if self.facts.unique and (listed := self._listed_values()) is not None:
            items = [Item(json_text.literal(value, self.style)) for value in listed.values()]
            least, most = self.facts.min_items, self.facts.max_items
            return json_text.in_any_order(LiteralText("["), items, least, most, "]")
        exempting = {places for rule in self.facts.arrays for places in rule.unless}
        rules = [r for r in self.facts.contains if not r.says_nothing or r.places in exempting]
        return self._counted(rules, exempting) if rules else self._plain()

    def _listed_values(self) -> Literals | None:
        """Return the values that distinct items are of, if they are few and all alike."""
        facts = self.facts
        if facts.contains or not facts.arrays or self._listed():
            return None
        places = facts.item(0)
        found = self.algebra.values(places)
        if found is None or len(found) > MAX_DISTINCT:
            return None
        try:
            return {k: v for k, v in found.items() if self.algebra.admits_below(places, v)}
        except Unprovable:
            return None  # the items say why, when they are written

    @property
    def _open(self) -> Node:
        """What an array begins with."""
        most = self.facts.max_items
        if not self.facts.unique or (most is not None and most < 2):
            return seq(LiteralText("["), WS)
        needed = [self.facts.min_items, *(rule.least for rule in self.facts.contains)]
        marks = DISTINCT | (GROWING if max(needed) > 1 else 0)
        return seq(LiteralText("["), Mark(marks, tuple(map(plain_pointer, self.facts.unique))), WS)

    def _plain(self) -> Node:
        facts = self.facts
        most = facts.max_items
        listed = self._listed()
        # An array without listed items begins with one of the others, which has no comma.
        listed = max(listed, 1) if most is None else min(max(listed, 1), most)
        room = None if most is None else most - listed
        missing = max(facts.min_items - listed, 0)
        rest = self.value(facts.item(listed))
        tail = seq(repeated(seq(COMMA, rest), missing, room, facts, "minItems"), _END)
        for index in range(listed - 1, -1, -1):
            tail = seq(COMMA if index else EMPTY, self.value(facts.item(index)), tail)
            end = _END if index else _CLOSE
            tail = tail if index < facts.min_items else alternation([tail, end])
        if not listed:
            tail = NOTHING if facts.min_items else _CLOSE
        return seq(self._open, tail)

    def _listed(self) -> int:
        return max((len(rule.prefix) for rule in self.facts.arrays), default=0)

    def _counted(self, rules: list[ContainsRule], exempting: set[SchemaRefs]) -> Node:
        facts = self.facts
        starts = [rule.start for rule in rules]
        last = max(self._listed(), facts.min_items, (facts.max_items or 0), *starts, 1)
        limits = [rule.least if rule.most is None else rule.most for rule in rules]
        limits = [max(limit, rule.least) for limit, rule in zip(limits, rules, strict=True)]
        num_rules = last + 1
        for limit in limits:
            num_rules *= limit + 1
        if num_rules > MAX_COUNTED:
            reason = f"counting its items needs more than {MAX_COUNTED} rules"
            raise UnsupportedKeyword(facts.pointer, "contains", reason)
        todo, defined = [(0, (0,) * len(rules))], set[tuple[int, Counts]]()
        while todo:
            state = todo.pop()
            if state in defined:
                continue
            defined.add(state)
            branches = list(self._branches(*state, rules, exempting))
            following = [(min(state[0] + 1, last), counts) for _, counts in branches]
            nodes = [
                seq(COMMA if state[0] else EMPTY, self.value(places), Ref(self._rule(*after)))
                for (places, _), after in zip(branches, following, strict=True)
            ]
            self.define(self._rule(*state), alternation([*nodes, *self._ends(*state, rules)]))
            todo += following
        return seq(self._open, Ref(self._rule(0, (0,) * len(rules))))

    def _rule(self, index: int, counts: Counts) -> str:
        return "-".join([f"{self.name}a", str(index), *map(str, counts)])

    def _ends(self, index: int, counts: Counts, rules: list[ContainsRule]) -> Iterator[Node]:
        enough = all(count >= rule.least for count, rule in zip(counts, rules, strict=True))
        if enough and index >= self.facts.min_items:
            yield _END if index else _CLOSE

    def _branches(
        self, index: int, counts: Counts, rules: list[ContainsRule], exempting: set[SchemaRefs]
    ) -> Iterator[tuple[SchemaRefs, Counts]]:
        """Yield what the item at an index may be, and the counts behind it.

        An item that is counted is valid at the rule's places. One that isn't need not be invalid
        there, unless the count is limited or the item would be exempted from another rule.
        """
        most = self.facts.max_items
        if most is not None and index >= most:
            return
        options = [
            list(_options(rule, index, count, rule.places in exempting))
            for rule, count in zip(rules, counts, strict=True)
        ]
        for chosen in product(*options):
            contained = {
                rule.places
                for rule, (is_in, _, _) in zip(rules, chosen, strict=True)
                if is_in and rule.evaluates
            }
            said = [places for _, places, _ in chosen]
            places = merged_refs(self.facts.item(index, contained), *said)
            yield places, tuple(count for _, _, count in chosen)


def _options(
    rule: ContainsRule, index: int, count: int, exempts: bool
) -> Iterator[tuple[bool, SchemaRefs, int]]:
    """Yield whether an item is valid at the rule's places, what that asks for, and the count."""
    counts_here = index >= rule.start
    is_limited = rule.most is not None and counts_here
    wanted = rule.least if rule.most is None else max(rule.most, rule.least)
    is_full = is_limited and count >= (rule.most or 0)
    if not is_full and ((counts_here and count < wanted) or exempts):
        yield True, rule.places, min(count + counts_here, wanted)
    if is_limited:
        yield False, (negation(rule.places),), count
    else:
        yield False, (), count
