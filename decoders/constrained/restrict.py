"""Removes from a table what a restricted vocabulary cannot spell.

What is left of it can be completed, by texts that are spelled operation by operation: a literal
that only a token reaching over its end could spell counts as one that can't be. So nothing that
can't be completed is legal, but for what is known on the way (Automaton.num_closing).
"""

from __future__ import annotations

from typing import Any

from plait.decoders.constrained.spec import ConstraintError
from plait.decoders.constrained.table import OperationTable
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.kernels.grammar import UNREACHABLE, OpKind
from plait.kernels.grammar.lexeme import LexemeAutomaton
from plait.kernels.grammar.tails import Tails

_LEAVES = (OpKind.TEXT, OpKind.SET, OpKind.LISTED, OpKind.LEXEME, OpKind.MARK)
MAX_CHARACTERS = 8192  # of the shortest text of a lexeme; no closing is longer


def restricted(table: OperationTable, vocabulary: Vocabulary) -> OperationTable:
    """Return the table without alternatives that the vocabulary can't spell.

    Raises:
        ConstraintError: nothing is left.
    Cost: linear in the operations, times the depth of what they nest.
    """
    speller = _Speller(table, vocabulary)
    if not speller.can[table.root]:
        raise ConstraintError("the vocabulary can't spell a text")
    operations = [speller.without(operation) for operation in table.operations]
    return OperationTable(operations, table.dfas, table.root)


class _Speller:
    """Finds the operations with a text that the vocabulary can spell (least fixed point)."""

    def __init__(self, table: OperationTable, vocabulary: Vocabulary) -> None:
        self._table = table
        self._tails = Tails(vocabulary.token_of)
        alone = {text[0] for text in vocabulary.token_of if len(text) == 1}
        self._preferred = sorted(range(256), key=lambda byte: (byte not in alone, byte))
        self.can = [self._is_leaf(each) and self._spells(each) for each in table.operations]
        compound = [i for i, each in enumerate(table.operations) if not self._is_leaf(each)]
        changed = True
        while changed:
            found = [i for i in compound if not self.can[i] and self._joins(table.operations[i])]
            for i in found:
                self.can[i] = True
            changed = bool(found)

    def without(self, operation: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return an operation without its optional parts that cannot be spelled."""
        kind, *rest = operation
        if kind == OpKind.CHOICE:
            return (kind, [item for item in rest[0] if self.can[item]] or rest[0])
        if kind == OpKind.ANY_ORDER:
            kept = [i for i, item in enumerate(rest[0]) if self.can[item] or rest[1][i] & 1]
            flags = bytes(rest[1][i] for i in kept)
            most = rest[4] if self.can[rest[2]] else 1
            return (kind, [rest[0][i] for i in kept], flags, rest[2], rest[3], most)
        if kind == OpKind.LISTED:
            return (kind, [text for text in rest[0] if self._is_spelled(text)] or rest[0])
        if kind == OpKind.REPEAT and not self.can[rest[0]]:
            return (OpKind.TEXT.value, b"")
        return operation

    @staticmethod
    def _is_leaf(operation: tuple[Any, ...]) -> bool:
        return operation[0] in _LEAVES

    def _spells(self, operation: tuple[Any, ...]) -> bool:
        kind, *rest = operation
        if kind in (OpKind.TEXT, OpKind.MARK):
            return kind == OpKind.MARK or self._is_spelled(rest[0])
        if kind == OpKind.SET:
            return any(self._is_spelled(bytes([byte])) for byte in rest[0])
        if kind == OpKind.LISTED:
            return any(self._is_spelled(text) for text in rest[0])
        lexeme = LexemeAutomaton(self._table.dfas[rest[0]], rest[1], rest[2])
        if not 0 <= lexeme.missing(0, 0) <= MAX_CHARACTERS:
            return False
        return self._is_spelled(lexeme.cheapest((0, 0), self._preferred))

    def _joins(self, operation: tuple[Any, ...]) -> bool:
        kind, *rest = operation
        if kind == OpKind.SEQ:
            return all(self.can[item] for item in rest[0])
        if kind == OpKind.CHOICE:
            return any(self.can[item] for item in rest[0])
        if kind == OpKind.ANY_ORDER:
            return self._joins_in_any_order(*rest)
        return bool(self.can[rest[0]] or (kind == OpKind.REPEAT and rest[1] == 0))

    def _joins_in_any_order(
        self, items: list[int], flags: bytes, separator: int, least: int, _: int
    ) -> bool:
        spelled = [flag for item, flag in zip(items, flags, strict=True) if self.can[item]]
        num_required = sum(flag & 1 for flag in flags)
        if sum(flag & 1 for flag in spelled) < num_required:
            return False
        enough = len(spelled) >= least or any(flag & 2 for flag in spelled)
        return enough and (self.can[separator] or max(least, num_required) < 2)

    def _is_spelled(self, text: bytes) -> bool:
        return self._tails.prepend(text, self._tails.end).tokens < UNREACHABLE
