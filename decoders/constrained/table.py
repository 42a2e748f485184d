"""From a grammar to the table of operations over bytes that the automaton walks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from plait.decoders.constrained.grammar.nodes import (
    Chars,
    Choice,
    Grammar,
    Lexeme,
    Node,
    Ranges,
    Ref,
    Repeat,
    Seq,
    Text,
)
from plait.decoders.constrained.grammar.utf8 import utf8_rows
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.kernels.grammar import Automaton, DfaParts, Kind, make_automaton


class Table(msgspec.Struct, frozen=True, array_like=True):
    """A grammar in the form that travels and that an automaton is made of."""

    operations: list[tuple[Any, ...]]  # see plait.kernels.grammar.Kind
    dfas: list[DfaParts]
    root: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Table)


def encode_table(table: Table) -> bytes:
    """Return the table as bytes."""
    return _encoder.encode(table)


def decode_table(encoded: bytes) -> Table:
    """Return the table that the bytes hold."""
    return _decoder.decode(encoded)


def build_automaton(grammar: Grammar, vocabulary: Vocabulary) -> Automaton:
    """Return the automaton of a pruned grammar.

    Raises:
        plait.kernels.grammar.TooLarge: a part's shortest text has more tokens than any answer.
    """
    return load_automaton(build_table(grammar), vocabulary)


def load_automaton(table: Table, vocabulary: Vocabulary) -> Automaton:
    """Return the automaton of a table; raises as build_automaton."""
    return make_automaton(table.operations, table.dfas, table.root, vocabulary.handle)


def build_table(grammar: Grammar) -> Table:
    """Return the table of a pruned grammar. Cost: linear in its nodes."""
    return _Builder().run(grammar)


class _Builder:
    """Operations by what they do; equal leaves are shared, and so are nodes that are one object."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, ...]] = []
        self._dfas: list[DfaParts] = []
        self._rules: dict[str, int] = {}
        self._leaves: dict[tuple[Any, ...], int] = {}
        self._chars: dict[Ranges, int] = {}
        self._dfa_numbers: dict[int, int] = {}  # by identity: they are large, and made once
        self._nodes: dict[int, int] = {}  # by identity: hashing a node hashes all below it

    def run(self, grammar: Grammar) -> Table:
        for name in grammar.rules:
            self._rules[name] = len(self._operations)
            self._operations.append((Kind.RULE.value, 0))
        for name, node in grammar.rules.items():
            self._operations[self._rules[name]] = (Kind.RULE.value, self.add(node))
        return Table(self._operations, self._dfas, self._rules["root"])

    def add(self, node: Node) -> int:
        """Return the operation of a node."""
        if isinstance(node, Ref):
            return self._rules[node.name]
        if isinstance(node, Text):
            return self._leaf((Kind.TEXT.value, node.value.encode()))
        if isinstance(node, Chars):
            return self._characters(node.ranges)
        known = self._nodes.get(id(node))
        if known is None:
            known = self._nodes[id(node)] = self._compound(node)
        return known

    def _compound(self, node: Seq | Choice | Repeat | Lexeme) -> int:
        if isinstance(node, Seq):
            return self._put(Kind.SEQ, [self.add(item) for item in node.items])
        if isinstance(node, Choice):
            return self._choice(node.items)
        most = -1 if node.most is None else node.most
        if isinstance(node, Lexeme):
            return self._put(Kind.LEXEME, self._dfa(node.dfa), node.least, most)
        return self._put(Kind.REPEAT, self.add(node.item), node.least, most)

    def _choice(self, items: Sequence[Node]) -> int:
        """Return the operation of one of the items; those that are texts become one list."""
        texts = {item.value.encode() for item in items if isinstance(item, Text)}
        if len(texts) < 2:
            found = [self.add(item) for item in items]
        else:
            others = [self.add(item) for item in items if not isinstance(item, Text)]
            found = [self._put(Kind.LISTED, sorted(texts)), *others]
        return found[0] if len(found) == 1 else self._put(Kind.CHOICE, found)

    def _characters(self, ranges: Ranges) -> int:
        """Return the operation of one UTF-8 encoded character."""
        known = self._chars.get(ranges)
        if known is None:
            rows = [row for first, last in ranges for row in utf8_rows(first, last)]
            single = [byte for (a, b), *rest in rows if not rest for byte in range(a, b + 1)]
            found = [self._set(single)] if single else []
            for row in rows:
                if len(row) > 1:
                    sets = [self._set(range(a, b + 1)) for a, b in row]
                    found.append(self._put(Kind.SEQ, sets))
            known = found[0] if len(found) == 1 else self._put(Kind.CHOICE, found)
            self._chars[ranges] = known
        return known

    def _set(self, allowed: Sequence[int]) -> int:
        return self._leaf((Kind.SET.value, bytes(allowed)))

    def _dfa(self, dfa: DfaParts) -> int:
        known = self._dfa_numbers.get(id(dfa))
        if known is None:
            known = self._dfa_numbers[id(dfa)] = len(self._dfas)
            self._dfas.append(dfa)
        return known

    def _leaf(self, operation: tuple[Any, ...]) -> int:
        known = self._leaves.get(operation)
        if known is None:
            known = self._leaves[operation] = len(self._operations)
            self._operations.append(operation)
        return known

    def _put(self, kind: Kind, *rest: Any) -> int:
        self._operations.append((kind.value, *rest))
        return len(self._operations) - 1
