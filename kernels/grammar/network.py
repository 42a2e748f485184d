"""A grammar as a recursive transition network: small automata that call each other.

Each nonterminal is an automaton with one start and one final state, whose edges read nothing, read
a byte out of a set, or call a nonterminal. Empty and unit productions stay as they are, so the
network grows linearly with the operations: an operation that is used once is inlined, a rule, a
lexeme or an operation that is used twice is called, listed texts share their beginnings, and a
repetition of many is called by halves.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from plait.kernels.grammar import DfaParts, OpKind
from plait.kernels.grammar.lexeme import LexemeAutomaton

MAX_LEXEME_STATES = 4096  # of one lexeme with its characters counted; beyond, they are not
MAX_UNROLLED = 8  # repetitions; beyond, halves of them are called
MAX_NESTED = 30  # operations inlined within each other


class EdgeKind(IntEnum):
    """What an edge does; the comment says what its value is."""

    EMPTY = 0  # nothing
    BYTES = 1  # index of a set of bytes
    CALL = 2  # a nonterminal


Edge = tuple[int, int, int, int]  # state, EdgeKind, value, target


@dataclass(frozen=True, slots=True)
class Network:
    """The automata of all nonterminals, with their states numbered together."""

    edges: Sequence[Edge]  # by rising state
    num_states: int
    starts: Sequence[int]  # by nonterminal
    finals: Sequence[int]
    sets: Sequence[bytes]
    root: int
    is_exact: bool  # else some lexeme accepts texts of any length, not just of its own, or items in
    # any order any number of times


def build_network(
    operations: Sequence[tuple[Any, ...]], dfas: Sequence[DfaParts], root: int
) -> Network:
    """Return the network of a table of operations (plait.kernels.grammar).

    Law: its language is the table's, or a superset if it is not exact. Cost: linear in the
    operations and in the states of their lexemes.
    """
    return _NetworkBuilder(operations, dfas).run(root)


class _NetworkBuilder:
    """Adds nonterminals until none is missing."""

    def __init__(self, operations: Sequence[tuple[Any, ...]], dfas: Sequence[DfaParts]) -> None:
        self._operations, self._dfas = operations, dfas
        self._uses = Counter(item for operation in operations for item in items_of(operation))
        self._edges: list[Edge] = []
        self._starts: list[int] = []
        self._finals: list[int] = []
        self._num_states = 0
        self._sets: dict[bytes, int] = {}
        self._numbers: dict[Any, int] = {}
        self._todo: deque[tuple[int, Callable[[int, int], None]]] = deque()
        self._is_exact = True

    def run(self, root: int) -> Network:
        first = self._nonterminal(root, lambda start, end: self._body(root, start, end, 0))
        while self._todo:
            number, build = self._todo.popleft()
            build(self._starts[number], self._finals[number])
        return Network(
            sorted(self._edges),
            self._num_states,
            self._starts,
            self._finals,
            list(self._sets),
            first,
            self._is_exact,
        )

    def _state(self) -> int:
        self._num_states += 1
        return self._num_states - 1

    def _nonterminal(self, key: Any, build: Callable[[int, int], None]) -> int:
        """Return the number of a nonterminal; if it is new, it will be built."""
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self._starts)
            self._starts.append(self._state())
            self._finals.append(self._state())
            self._todo.append((known, build))
        return known

    def _edge(self, state: int, kind: EdgeKind, value: int, target: int) -> None:
        self._edges.append((state, kind.value, value, target))

    def _bytes(self, state: int, members: bytes, target: int) -> None:
        self._edge(state, EdgeKind.BYTES, self._sets.setdefault(members, len(self._sets)), target)

    def _skip(self, state: int, target: int) -> None:
        self._edge(state, EdgeKind.EMPTY, 0, target)

    def _add(self, op: int, start: int, end: int, depth: int, uses: int = 1) -> None:
        """Add the texts of an operation between two states, inlined or as a call."""
        kind = self._operations[op][0]
        is_called = kind in (OpKind.RULE, OpKind.LEXEME) or depth > MAX_NESTED
        is_called |= self._uses[op] * uses > 1 and kind not in (OpKind.TEXT, OpKind.SET)
        if is_called:
            number = self._nonterminal(op, lambda first, last: self._body(op, first, last, 0))
            self._edge(start, EdgeKind.CALL, number, end)
        else:
            self._body(op, start, end, depth)

    def _adding(self, op: int, depth: int) -> Callable[[int, int], None]:
        return lambda start, end: self._add(op, start, end, depth)

    def _body(self, op: int, start: int, end: int, depth: int) -> None:
        kind, *rest = self._operations[op]
        if kind in (OpKind.TEXT, OpKind.LISTED):
            self._texts([rest[0]] if kind == OpKind.TEXT else rest[0], start, end)
        elif kind == OpKind.SET:
            self._bytes(start, rest[0], end)
        elif kind == OpKind.SEQ:
            self._row([self._adding(item, depth + 1) for item in rest[0]], start, end)
        elif kind == OpKind.CHOICE:
            for item in rest[0]:
                self._add(item, start, end, depth + 1)
        elif kind == OpKind.REPEAT:
            self._repeat(op, start, end, depth)
        elif kind == OpKind.RULE:
            self._add(rest[0], start, end, depth + 1)
        elif kind == OpKind.MARK:
            self._skip(start, end)
        elif kind == OpKind.ANY_ORDER:
            self._any_order(op, start, end)
        else:
            self._lexeme(op, start, end)

    def _row(self, parts: Sequence[Callable[[int, int], None]], start: int, end: int) -> None:
        """Add the parts one after the other."""
        for part in parts:
            behind = self._state()
            part(start, behind)
            start = behind
        self._skip(start, end)

    def _texts(self, texts: Sequence[bytes], start: int, end: int) -> None:
        """Add texts that share their beginnings."""
        states = {b"": start}
        for text in texts:
            for length in range(1, len(text) + 1):
                if text[:length] not in states:
                    states[text[:length]] = self._state()
                    self._bytes(
                        states[text[: length - 1]], text[length - 1 : length], states[text[:length]]
                    )
            self._skip(states[text], end)

    def _repeat(self, op: int, start: int, end: int, depth: int) -> None:
        _, item, least, most = self._operations[op]
        parts = [self._times(item, least, is_optional=False)] if least else []
        if most < 0:
            parts.append(lambda s, e: self._loop(item, s, e, depth, bool(least) + 1))
        elif most == 1 and not least:
            parts.append(self._adding(item, depth + 1))
            self._skip(start, end)
        elif most > least:
            parts.append(self._times(item, most - least, is_optional=True))
        self._row(parts, start, end)

    def _any_order(self, op: int, start: int, end: int) -> None:
        """Add the items without a look at how often they come: too many texts, not too few."""
        _, items, flags, separator, least, _ = self._operations[op]
        self._is_exact = False
        behind, ahead = self._state(), self._state()
        for item in items:
            self._add(item, start, behind, 0, uses=2)
            self._add(item, ahead, behind, 0, uses=2)
        self._add(separator, behind, ahead, 0)
        self._skip(behind, end)
        if not least and not any(flag & 1 for flag in flags):
            self._skip(start, end)

    def _loop(self, item: int, start: int, end: int, depth: int, uses: int) -> None:
        inside = self._state()  # the start may be that of other alternatives, too
        self._skip(start, inside)
        self._add(item, inside, inside, depth + 1, uses)
        self._skip(inside, end)

    def _times(self, item: int, count: int, *, is_optional: bool) -> Callable[[int, int], None]:
        """Return what adds `count` items, or up to as many."""

        def once(start: int, end: int) -> None:
            self._add(item, start, end, 0, uses=2)
            if is_optional:
                self._skip(start, end)

        def halves(start: int, end: int) -> None:
            parts = [self._times(item, count // 2, is_optional=is_optional)] * 2
            self._row([*parts, *[once] * (count % 2)], start, end)

        def call(start: int, end: int) -> None:
            number = self._nonterminal((item, count, is_optional), halves)
            self._edge(start, EdgeKind.CALL, number, end)

        if count <= MAX_UNROLLED:
            return lambda start, end: self._row([once] * count, start, end)
        return call

    def _lexeme(self, op: int, start: int, end: int) -> None:
        _, number, least, most = self._operations[op]
        parts = self._dfas[number]
        found = _lexeme_edges(LexemeAutomaton(parts, least, most), parts)
        if found is None:
            self._is_exact = False
            found = _lexeme_edges(LexemeAutomaton(parts, 0, -1), parts)
        assert found is not None, "an automaton has fewer states than any limit"
        states = {0: start}
        for source, members, target in found:
            for each in (source, target):
                if each not in states and each >= 0:
                    states[each] = self._state()
            if target < 0:
                self._skip(states[source], end)
            else:
                self._bytes(states[source], members, states[target])


def items_of(operation: tuple[Any, ...]) -> Sequence[int]:
    """Return the operations that an operation is made of."""
    kind, *rest = operation
    if kind in (OpKind.SEQ, OpKind.CHOICE):
        return list(rest[0])
    if kind == OpKind.ANY_ORDER:
        return [*rest[0], rest[2]]
    return [rest[0]] if kind in (OpKind.REPEAT, OpKind.RULE) else []


def _lexeme_edges(lexeme: LexemeAutomaton, parts: DfaParts) -> list[tuple[int, bytes, int]] | None:
    """Return (state, bytes, target) from state 0 on, target -1 where a text may end.

    None: it has more than MAX_LEXEME_STATES.
    """
    members: dict[int, list[int]] = {}
    for byte, number in enumerate(parts[0]):
        members.setdefault(number, []).append(byte)
    numbers = {(0, 0): 0}
    todo, found = deque(numbers), list[tuple[int, bytes, int]]()
    while todo:
        at = todo.popleft()
        targets: dict[int, list[int]] = {}
        for each in members.values():
            after = lexeme.step(at, each[0])
            if after is None:
                continue
            if after not in numbers:
                numbers[after] = len(numbers)
                todo.append(after)
            targets.setdefault(numbers[after], []).extend(each)
        if len(numbers) > MAX_LEXEME_STATES:
            return None
        found += [(numbers[at], bytes(sorted(own)), target) for target, own in targets.items()]
        found += [(numbers[at], b"", -1)] if lexeme.ends(at) else []
    return found
