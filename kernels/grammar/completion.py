"""Reference: the cheapest completion of each operation, and of a partly read one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.kernels.grammar import UNREACHABLE, OpKind, TooLarge
from plait.kernels.grammar.lexeme import LexemeAutomaton
from plait.kernels.grammar.tails import Tails

MAX_CLOSING_TOKENS = 8192  # of any one operation


class StackFrame(NamedTuple):
    """A place in an operation. TEXT: offset; SEQ: item; REPEAT: least and most that are left;
    LISTED: what was read; LEXEME: state and count; ANY_ORDER: see AnyOrderPlace."""

    op: int
    at: Any = 0


class AnyOrderPlace(NamedTuple):
    """How far items in any order have come."""

    used: frozenset[int] = frozenset()  # indices of items
    taken: int = 0  # items so far, as far as their number matters
    is_separated: bool = False  # a separator was read


_BEGINNINGS = {OpKind.LISTED: b"", OpKind.LEXEME: (0, 0)}


class CheapestCompletion:
    """The texts with the fewest tokens, for each operation by itself (not in context)."""

    def __init__(
        self,
        operations: Sequence[tuple[Any, ...]],
        lexemes: Mapping[int, LexemeAutomaton],
        tails: Tails,
        token_of: Mapping[bytes, int],
    ) -> None:
        self._operations = operations
        self._lexemes = lexemes
        self._tails = tails
        self._token_of = token_of
        self._preferred = sorted(range(256), key=self._preference)
        self._cheapest: dict[int, bytes] = {}
        self._costs: dict[int, int] = {}
        self._estimate()

    def _preference(self, byte: int) -> tuple[bool, bool, int]:
        spelled = bytes([byte])
        return spelled not in self._token_of, not spelled.isalnum(), byte

    def _cost(self, text: bytes) -> int:
        return self._tails.prepend(text, self._tails.end).tokens

    def _estimate(self) -> None:
        """Compute the cheapest text of every operation (least fixed point)."""
        costs = self._costs
        costs.update(dict.fromkeys(range(len(self._operations)), UNREACHABLE))
        changed = True
        while changed:
            changed = False
            for op in range(len(self._operations)):
                cost, text = self._candidate(op)
                if cost < costs[op]:
                    costs[op], self._cheapest[op], changed = cost, text, True
        if any(MAX_CLOSING_TOKENS < cost < UNREACHABLE for cost in costs.values()):
            raise TooLarge(f"a part of it takes more than {MAX_CLOSING_TOKENS} tokens to complete")

    def _candidate(self, op: int) -> tuple[int, bytes]:
        """Return the cheapest text, given the costs that are known so far."""
        kind, *rest = self._operations[op]
        if kind == OpKind.MARK:
            return 0, b""
        if kind in (OpKind.TEXT, OpKind.SET, OpKind.LISTED, OpKind.LEXEME):
            text = self._leaf(op, _BEGINNINGS.get(kind, 0))
            return self._cost(text), text
        cheapest = {op: self._cheapest.get(op, b"") for op in self._items(op)}
        costs = [self._costs[item] for item in self._items(op)]
        if kind == OpKind.CHOICE:
            best = rest[0][costs.index(min(costs))]
            return min(costs), cheapest[best]
        if kind == OpKind.ANY_ORDER:
            parts = self._spelled_plan(op, AnyOrderPlace())
            cost = min(sum(self._costs[part] for part in parts), UNREACHABLE)
            return cost, b"".join(self._cheapest.get(part, b"") for part in parts)
        if kind == OpKind.REPEAT:
            cost = min(rest[1] * costs[0], UNREACHABLE)
            return cost, cheapest[rest[0]] * (rest[1] if cost <= MAX_CLOSING_TOKENS else 0)
        return min(sum(costs), UNREACHABLE), b"".join(cheapest[item] for item in self._items(op))

    def _items(self, op: int) -> list[int]:
        kind, *rest = self._operations[op]
        listed = (OpKind.SEQ, OpKind.CHOICE, OpKind.ANY_ORDER)
        return list(rest[0]) if kind in listed else [rest[0]]

    def plan(self, op: int, at: AnyOrderPlace) -> list[int]:
        """Return the items that end ANY_ORDER soonest, by index.

        The required ones in their order, then the cheapest until there are enough.
        """
        items, flags, _, least, _ = self._operations[op][1:]
        due = [i for i in range(len(items)) if flags[i] & 1 and i not in at.used]
        others = [i for i in range(len(items)) if i not in at.used or flags[i] & 2]
        others = sorted(set(others) - set(due), key=lambda i: (self._costs[items[i]], i))
        wanted = max(least - at.taken, int(at.is_separated))
        while len(due) < wanted and others:
            due.append(others[0])
            if not flags[others[0]] & 2:
                del others[0]
        return due

    def _spelled_plan(self, op: int, at: AnyOrderPlace) -> list[int]:
        """Return the plan as operations, separators among them."""
        items, _, separator, _, _ = self._operations[op][1:]
        found: list[int] = []
        for index, item in enumerate(self.plan(op, at)):
            is_separated = at.taken == 0 or at.is_separated if index == 0 else False
            found += [items[item]] if is_separated else [separator, items[item]]
        return found

    def _leaf(self, op: int, at: Any) -> bytes:
        """Return the cheapest text of a frame without sub-operations."""
        kind, *rest = self._operations[op]
        if kind == OpKind.TEXT:
            return bytes(rest[0][at:])
        if kind == OpKind.SET:
            return bytes([next(byte for byte in self._preferred if byte in rest[0])])
        if kind == OpKind.LEXEME:
            return bytes(self._lexemes[op].cheapest(at, self._preferred))
        texts = [text for text in rest[0] if text.startswith(at)]
        return bytes(min(texts, key=lambda text: (self._cost(text), text))[len(at) :])

    def rest(self, frame: StackFrame) -> bytes:
        """Return the cheapest text of what is left of an operation."""
        kind, *rest = self._operations[frame.op]
        if kind == OpKind.SEQ:
            return b"".join(self._cheapest[item] for item in rest[0][frame.at :])
        if kind == OpKind.MARK:
            return b""
        if kind == OpKind.ANY_ORDER:
            parts = self._spelled_plan(frame.op, frame.at)
            return b"".join(self._cheapest[part] for part in parts)
        if kind == OpKind.REPEAT:
            return bytes(self._cheapest[rest[0]] * frame.at[0])
        if kind in (OpKind.RULE, OpKind.CHOICE):
            return self._cheapest[frame.op]
        return self._leaf(frame.op, frame.at)
