"""Converts a grammar to the table of byte operations that the automaton executes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    Alternation,
    AnyOrder,
    CharClass,
    Grammar,
    Lexeme,
    LiteralText,
    Mark,
    Node,
    Ranges,
    Ref,
    Repeat,
    Seq,
)
from plait.decoders.constrained.grammar.utf8 import utf8_rows
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.kernels.grammar import Automaton, DfaParts, OpKind, make_automaton


class OperationTable(msgspec.Struct, frozen=True, array_like=True):
    """A compiled grammar: it is serialised, and an automaton is made of it."""

    operations: list[tuple[Any, ...]]  # see plait.kernels.grammar.OpKind
    dfas: list[DfaParts]
    root: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(OperationTable)


def encode_table(table: OperationTable) -> bytes:
    """Return the table as bytes."""
    return _encoder.encode(table)


def decode_table(encoded: bytes) -> OperationTable:
    """Return the decoded table."""
    return _decoder.decode(encoded)


def build_automaton(grammar: Grammar, vocabulary: Vocabulary) -> Automaton:
    """Return the automaton of a pruned grammar.

    Raises:
        plait.kernels.grammar.TooLarge: a part's shortest text has more tokens than any answer.
    """
    return load_automaton(build_table(grammar), vocabulary)


def load_automaton(table: OperationTable, vocabulary: Vocabulary) -> Automaton:
    """Return the automaton of a table; raises as build_automaton."""
    return make_automaton(table.operations, table.dfas, table.root, vocabulary.handle)


def build_table(grammar: Grammar) -> OperationTable:
    """Return the table of a pruned grammar. Cost: linear in its nodes."""
    return _Builder().run(grammar)


@lru_cache(1024)  # the classes of JSON's own syntax stand in every schema's grammar
def _byte_sets(ranges: Ranges) -> tuple[bytes, list[list[bytes]]]:
    """Return the characters of one byte, and rows of sets of bytes for the others."""
    rows = [row for first, last in ranges for row in utf8_rows(first, last)]
    single = bytes(byte for (a, b), *rest in rows if not rest for byte in range(a, b + 1))
    return single, [[bytes(range(a, b + 1)) for a, b in row] for row in rows if len(row) > 1]


# Plain numbers: there are many operations, and looking up an enum's member calls functions.
_TEXT, _SET, _SEQ, _CHOICE = map(int, (OpKind.TEXT, OpKind.SET, OpKind.SEQ, OpKind.CHOICE))
_REPEAT, _RULE, _LISTED = map(int, (OpKind.REPEAT, OpKind.RULE, OpKind.LISTED))
_LEXEME, _ANY_ORDER, _MARK = map(int, (OpKind.LEXEME, OpKind.ANY_ORDER, OpKind.MARK))


class _Builder:
    """Builds a table; equal leaves share one operation, and so does a node that is used twice."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, ...]] = []
        self._dfas: list[DfaParts] = []
        self._rules: dict[str, int] = {}
        self._leaves: dict[tuple[Any, ...], int] = {}
        self._texts: dict[str, int] = {}
        self._chars: dict[Ranges, int] = {}
        self._dfa_numbers: dict[int, int] = {}  # by identity: they are large, and made once
        self._nodes: dict[int, int] = {}  # by identity: hashing a node hashes all below it
        self._empty: set[str] = set()  # rules that match the empty text only

    def run(self, grammar: Grammar) -> OperationTable:
        self._empty = {name for name, node in grammar.rules.items() if node == EMPTY}
        for name in grammar.rules:
            self._rules[name] = len(self._operations)
            self._operations.append((_RULE, 0))
        for name, node in grammar.rules.items():
            self._operations[self._rules[name]] = (_RULE, self.add(node))
        return OperationTable(self._operations, self._dfas, self._rules["root"])

    def add(self, node: Node) -> int:
        """Return the operation of a node."""
        if type(node) is Ref:
            return self._rules[node.name]
        if type(node) is LiteralText:
            return self._text(node.value)
        known = self._nodes.get(id(node))
        if known is None:
            known = self._nodes[id(node)] = self._added(node)
        return known

    def _added(self, node: Node) -> int:
        if isinstance(node, Seq):
            return self._row(node.items)
        if isinstance(node, Alternation):
            return self._choice(node.items)
        if isinstance(node, CharClass):
            return self._characters(node.ranges)
        if isinstance(node, Mark):
            return self._leaf((_MARK, node.bits))
        assert not isinstance(node, Ref | LiteralText), node
        return self._counted(node)

    def _counted(self, node: Repeat | Lexeme | AnyOrder) -> int:
        most = -1 if node.most is None else node.most
        if isinstance(node, Repeat):
            return self._put(_REPEAT, self.add(node.item), node.least, most)
        if isinstance(node, Lexeme):
            return self._put(_LEXEME, self._dfa(node.dfa), node.least, most)
        items = [self.add(item.node) for item in node.items]
        flags = bytes(item.is_required + 2 * item.may_repeat for item in node.items)
        return self._put(_ANY_ORDER, items, flags, self.add(node.separator), node.least, most)

    def _row(self, items: Sequence[Node]) -> int:
        """Return the operation of a row: without what is empty, its texts in one piece."""
        found: list[int] = []
        text = ""
        for item in items:
            if type(item) is LiteralText:
                text += item.value
                continue
            if type(item) is Ref and item.name in self._empty:
                continue
            if text:
                found.append(self._text(text))
                text = ""
            found.append(self.add(item))
        if text or not found:
            found.append(self._text(text))
        return found[0] if len(found) == 1 else self._put(_SEQ, found)

    def _choice(self, items: Sequence[Node]) -> int:
        """Return the operation of an alternation; its literal texts become one LISTED operation."""
        texts = {item.value.encode() for item in items if type(item) is LiteralText}
        if len(texts) < 2:
            found = [self.add(item) for item in items]
        else:
            others = [self.add(item) for item in items if type(item) is not LiteralText]
            found = [self._put(_LISTED, sorted(texts)), *others]
        return found[0] if len(found) == 1 else self._put(_CHOICE, found)

    def _text(self, text: str) -> int:
        known = self._texts.get(text)
        if known is None:
            known = self._texts[text] = self._put(_TEXT, text.encode())
        return known

    def _characters(self, ranges: Ranges) -> int:
        """Return the operation of one UTF-8 encoded character."""
        known = self._chars.get(ranges)
        if known is None:
            single, rows = _byte_sets(ranges)
            found = [self._set(single)] if single else []
            found += [self._put(_SEQ, list(map(self._set, row))) for row in rows]
            known = found[0] if len(found) == 1 else self._put(_CHOICE, found)
            self._chars[ranges] = known
        return known

    def _set(self, allowed: bytes) -> int:
        return self._leaf((_SET, allowed))

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

    def _put(self, *operation: Any) -> int:
        self._operations.append(operation)
        return len(self._operations) - 1
