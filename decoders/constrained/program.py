"""A grammar as a table of byte-level operations, with the cheapest text of each.

Operations are numbered; a row of items is a chain of pairs, so that expanding one is O(1), and
counted repetitions keep their counters as numbers. Nothing here depends on a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from plait.decoders.constrained.closing import UNREACHABLE, Tails
from plait.decoders.constrained.grammar.for_matcher import is_counted
from plait.decoders.constrained.grammar.nodes import (
    Chars,
    Grammar,
    Node,
    Ranges,
    Ref,
    Repeat,
    Seq,
    Text,
)
from plait.decoders.constrained.vocabulary import Vocabulary

OpKind = Literal["bytes", "set", "pair", "choice", "repeat", "rule"]
Op = int

MAX_CLOSING_TOKENS = 8192  # of any one operation


class TooLong(ValueError):
    """Some part of the grammar needs more tokens than any answer has."""


_UTF8_BOUNDS = ((0x0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))


@dataclass(slots=True, eq=False)
class Operation:
    """One entry of the table."""

    kind: OpKind
    text: bytes = b""  # bytes: what is spelled
    allowed: frozenset[int] = frozenset()  # set: one of these bytes
    items: tuple[Op, ...] = ()  # pair: head, tail; choice: all; repeat, rule: the body
    least: int = 0
    most: int | None = 0
    cost: int = UNREACHABLE  # estimated tokens of the cheapest text
    best: Op | bytes = b""  # choice: cheapest item; set: cheapest byte


@dataclass(slots=True, eq=False)
class Program:
    """The operations of a grammar; grows while counted repetitions run down."""

    vocabulary: Vocabulary
    tails: Tails
    operations: list[Operation] = field(default_factory=list)
    root: Op = 0
    counted: set[Op] = field(default_factory=set)  # bodies whose counts the matcher leaves out
    _is_estimated: bool = False
    _known: dict[object, Op] = field(default_factory=dict)
    _rules: dict[str, Op] = field(default_factory=dict)

    def __getitem__(self, op: Op) -> Operation:
        return self.operations[op]

    def text(self, spelled: bytes) -> Op:
        """Return the operation that spells these bytes."""
        return self._intern(("bytes", spelled), Operation("bytes", text=spelled))

    def pair(self, head: Op, tail: Op) -> Op:
        """Return the operation that does head and then tail."""
        return self._intern(("pair", head, tail), Operation("pair", items=(head, tail)))

    def repeat(self, body: Op, least: int, most: int | None) -> Op:
        """Return the operation that does the body least..most times."""
        operation = Operation("repeat", items=(body,), least=least, most=most)
        return self._intern(("repeat", body, least, most), operation)

    def choice(self, items: Sequence[Op]) -> Op:
        """Return the operation that does one of the items."""
        if len(items) == 1:
            return items[0]
        return self._intern(("choice", *items), Operation("choice", items=tuple(items)))

    def byte_set(self, allowed: frozenset[int]) -> Op:
        """Return the operation that spells one of these bytes."""
        return self._intern(("set", allowed), Operation("set", allowed=allowed))

    def chain(self, items: Sequence[Op]) -> Op:
        """Return the operation that does the items in a row."""
        if not items:
            return self.text(b"")
        op = items[-1]
        for item in reversed(items[:-1]):
            op = self.pair(item, op)
        return op

    def add(self, node: Node) -> Op:
        """Return the operation of a grammar node."""
        if isinstance(node, Text):
            return self.text(node.value.encode())
        if isinstance(node, Chars):
            return self._chars(node.ranges)
        if isinstance(node, Ref):
            return self._rules[node.name]
        if isinstance(node, Repeat):
            body = self.add(node.item)
            if is_counted(node):
                self.counted.add(body)
            return self.repeat(body, node.least, node.most)
        items = [self.add(item) for item in node.items]
        return self.chain(items) if isinstance(node, Seq) else self.choice(items)

    def declare(self, names: Sequence[str]) -> None:
        """Reserve operations for the rules, so that they can refer to each other."""
        for name in names:
            self._rules[name] = self._intern(("rule", name), Operation("rule"))

    def define(self, name: str, node: Node) -> None:
        """Give a declared rule its body."""
        self.operations[self._rules[name]].items = (self.add(node),)

    def cheapest(self, op: Op) -> bytes:
        """Return the cheapest text of an operation (by the estimate)."""
        spelled = bytearray()
        todo = [op]
        while todo:
            operation = self.operations[todo.pop()]
            if operation.kind == "bytes":
                spelled += operation.text
            elif operation.kind == "set":
                assert isinstance(operation.best, bytes)
                spelled += operation.best
            elif operation.kind == "choice":
                assert isinstance(operation.best, int)
                todo.append(operation.best)
            elif operation.kind == "repeat":
                todo.extend(operation.items * operation.least)
            else:
                todo.extend(reversed(operation.items))
        return bytes(spelled)

    def estimate(self) -> None:
        """Give every operation its cheapest text: the least fixed point, by a worklist (Knuth)."""
        users: list[list[Op]] = [[] for _ in self.operations]
        for op, operation in enumerate(self.operations):
            for item in set(operation.items):
                users[item].append(op)
        waiting = dict.fromkeys(reversed(range(len(self.operations))))
        while waiting:
            op = next(iter(waiting))
            del waiting[op]
            if self._improve(self.operations[op]):
                waiting.update(dict.fromkeys(users[op]))
        self._is_estimated = True

    def _improve(self, operation: Operation) -> bool:
        """Lower the cost if it can be; `best` changes only then, so it never runs in circles."""
        cost, best = self._cost(operation)
        if cost >= operation.cost:
            return False
        operation.cost, operation.best = cost, best
        return True

    def _cost(self, operation: Operation) -> tuple[int, Op | bytes]:
        """Return the tokens of the cheapest text and the way to it, by the costs known so far."""
        if operation.kind == "bytes":
            return self.tails.prepend(operation.text, self.tails.end).tokens, b""
        if operation.kind == "set":
            best = min((bytes([b]) for b in operation.allowed), key=self._byte_cost)
            return self._byte_cost(best)[0], best
        costs = [self.operations[item].cost for item in operation.items]
        if operation.kind == "choice":
            cost = min(costs)
            return cost, operation.items[costs.index(cost)]
        if operation.kind == "repeat":
            return min(operation.least * costs[0], UNREACHABLE), b""
        return min(sum(costs), UNREACHABLE), b""

    def _byte_cost(self, byte: bytes) -> tuple[int, bool, int]:
        """Order bytes by whether a token spells them alone, letters and digits first."""
        spelled = byte in self.vocabulary.token_of
        return (1 if spelled else UNREACHABLE, not byte.isalnum(), byte[0])

    def _intern(self, key: object, operation: Operation) -> Op:
        op = self._known.get(key)
        if op is None:
            op = self._known[key] = len(self.operations)
            if self._is_estimated:
                self._improve(operation)
            self.operations.append(operation)
        return op

    def _chars(self, ranges: Ranges) -> Op:
        """Return the operation of one UTF-8 encoded character."""
        single: set[int] = set()
        longer: list[Op] = []
        for first, last in ranges:
            for row in _utf8_rows(first, last):
                if len(row) == 1:
                    single.update(range(row[0][0], row[0][1] + 1))
                else:
                    sets = [self.byte_set(frozenset(range(a, b + 1))) for a, b in row]
                    longer.append(self.chain(sets))
        return self.choice([*([self.byte_set(frozenset(single))] if single else []), *longer])


def build_program(grammar: Grammar, vocabulary: Vocabulary) -> Program:
    """Return the program of a pruned grammar.

    Raises:
        TooLong: a part's shortest text has more than MAX_CLOSING_TOKENS.
    """
    program = Program(vocabulary, Tails(vocabulary))
    program.declare(list(grammar.rules))
    for name, node in grammar.rules.items():
        program.define(name, node)
    program.root = program.add(Ref("root"))
    program.estimate()
    if any(MAX_CLOSING_TOKENS < o.cost < UNREACHABLE for o in program.operations):
        raise TooLong(f"a part of it takes more than {MAX_CLOSING_TOKENS} tokens to complete")
    return program


def _utf8_rows(first: int, last: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield rows of byte ranges whose products are exactly the encodings of first..last."""
    for low, high in _UTF8_BOUNDS:
        if first <= high and last >= low:
            yield from _split(
                chr(max(first, low)).encode("utf-8", "surrogatepass"),
                chr(min(last, high)).encode("utf-8", "surrogatepass"),
            )


def _split(low: bytes, high: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield the rows between two encodings of the same length."""
    if len(low) == 1:
        yield ((low[0], high[0]),)
        return
    least, most = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    if low[0] == high[0]:
        for row in _split(low[1:], high[1:]):
            yield ((low[0], low[0]), *row)
        return
    first, last = low[0], high[0]
    if low[1:] != least:
        for row in _split(low[1:], most):
            yield ((first, first), *row)
        first += 1
    tail_cut = high[1:] != most
    if first <= last - tail_cut:
        yield ((first, last - tail_cut), *((0x80, 0xBF) for _ in least))
    if tail_cut:
        for row in _split(least, high[1:]):
            yield ((last, last), *row)
