"""Reference automaton in Python: test oracle of the C++, and fallback without a compiler.

A state is a set of stacks of frames (nested tuples, top first). A frame is an operation and the
position in it. Equal states have the same number.

Law: `closing_tokens` spells a completion of the text, and after its first token the completion of
the new state is at least one token shorter. So a sequence that keeps `num_closing <= tokens left`
can always end in time. The number is an upper bound of the minimum: alternatives are compared by
their own cost, not in context.

Source: the idea is TruncProof's (Nagashima et al. 2026, arXiv:2605.13076): tokens to accept, from
Dijkstra over productions. Differences: bytes instead of an LL(1) lexer, sets of stacks where a
grammar is ambiguous, and the exact segmentation of the closing text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.kernels.grammar import DEAD, DfaParts, OpKind
from plait.kernels.grammar.completion import AnyOrderPlace, CheapestCompletion, StackFrame
from plait.kernels.grammar.lexeme import LexemeAutomaton
from plait.kernels.grammar.tails import Tail, Tails, tokens_of

MAX_FORCED = 256  # bytes of one forced text


Stack = tuple[StackFrame, Any]  # the top frame and the stack below, () at the bottom
EMPTY: Any = ()


_BEGINNINGS = {OpKind.LISTED: b"", OpKind.LEXEME: (0, 0), OpKind.ANY_ORDER: AnyOrderPlace()}


class ReferenceVocabulary:
    """The bytes of each token; b"": never legal."""

    def __init__(self, spelled: Sequence[bytes]) -> None:
        self.tokens = list(spelled)
        self.token_of: dict[bytes, int] = {}
        for token_id, spelling in enumerate(spelled):
            if spelling:
                self.token_of.setdefault(spelling, token_id)

    def outgrows(self, text: bytes) -> bool:
        """Return whether some token is longer than the text and begins with it."""
        return any(len(t) > len(text) and t.startswith(text) for t in self.token_of)


class ReferenceAutomaton:
    """See `plait.kernels.grammar.Automaton`."""

    def __init__(
        self,
        operations: Sequence[tuple[Any, ...]],
        dfas: Sequence[DfaParts],
        root: int,
        vocabulary: ReferenceVocabulary,
    ) -> None:
        self._operations = operations
        self._lexemes = {
            op: LexemeAutomaton(dfas[operation[1]], *operation[2:])
            for op, operation in enumerate(operations)
            if operation[0] == OpKind.LEXEME
        }
        self._vocabulary = vocabulary
        self._tails = Tails(vocabulary.token_of)
        self._cheapest = CheapestCompletion(
            operations, self._lexemes, self._tails, vocabulary.token_of
        )
        self._states: list[frozenset[Stack]] = []
        self._numbers: dict[frozenset[Stack], int] = {}
        self._stack_tails: dict[Any, Tail] = {EMPTY: self._tails.end}
        self._masks: dict[int, NDArray[np.int32]] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._marks: dict[int, int] = {}
        self._marks_met = 0
        self.start = self._number(self._expand([self._begin(root, EMPTY)]))

    @property
    def num_bytes(self) -> int:
        """See the protocol."""
        return 400 * (len(self._states) + len(self._stack_tails) + len(self._next))

    def step(self, state: int, byte: int) -> int:
        """See the protocol."""
        if state == DEAD:
            raise IndexError("there is no such state")
        known = self._next.get((state, byte))
        if known is None:
            moved = [s for stack in self._states[state] for s in self._consume(stack, byte)]
            self._marks_met = 0
            known = self._next[state, byte] = self._number(self._expand(moved))
            self._marks[known] = self._marks.get(known, 0) | self._marks_met
        return known

    def advance(self, state: int, token_id: int) -> int:
        """See the protocol."""
        for byte in self._vocabulary.tokens[token_id]:
            state = self.step(state, byte)
            if state == DEAD:
                break
        return state

    def write_mask(self, state: int, row: NDArray[np.int32]) -> None:
        """See the protocol."""
        if state not in self._masks:
            flags = np.zeros(-(-len(self._vocabulary.tokens) // 32) * 32, np.uint8)
            dead: set[bytes] = set()  # beginnings of tokens
            for token_id, spelling in enumerate(self._vocabulary.tokens):
                flags[token_id] = bool(spelling) and self._fits(state, spelling, dead)
            self._masks[state] = np.packbits(flags, bitorder="little").view(np.int32)
        mask = self._masks[state]
        row[: len(mask)] = mask
        row[len(mask) :] = 0

    def successors(self, state: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See the protocol."""
        row = np.zeros(-(-len(self._vocabulary.tokens) // 32), np.int32)
        self.write_mask(state, row)
        tokens = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        return tokens, np.array([self.advance(state, int(token)) for token in tokens], np.int64)

    def _fits(self, state: int, spelling: bytes, dead: set[bytes]) -> bool:
        if any(spelling[:end] in dead for end in range(1, len(spelling) + 1)):
            return False
        for end, byte in enumerate(spelling, 1):
            state = self.step(state, byte)
            if state == DEAD:
                dead.add(spelling[:end])
                return False
        return True

    def is_accepting(self, state: int) -> bool:
        """See the protocol."""
        return EMPTY in self._states[state]

    def is_final(self, state: int) -> bool:
        """See the protocol."""
        return self._states[state] == {EMPTY}

    def num_closing(self, state: int) -> int:
        """See the protocol."""
        return self._closing(state).tokens

    def closing_tokens(self, state: int) -> list[int]:
        """See the protocol."""
        return tokens_of(self._closing(state))

    def _closing(self, state: int) -> Tail:
        tails = map(self._tail, self._states[state])
        return min(tails, key=lambda tail: (tail.tokens, tail.text))

    def forced(self, state: int) -> tuple[list[int], list[int]]:
        """See the protocol."""
        text = bytearray()
        while not self.is_accepting(state) and len(text) < MAX_FORCED:
            following = [b for b in range(256) if self.step(state, b) != DEAD]
            if len(following) != 1:
                break
            text += bytes(following)
            state = self.step(state, following[0])
        token_ids = tokens_of(self._tails.prepend(bytes(text), self._tails.end))
        sure = 0
        while sure < len(token_ids) and not self._vocabulary.outgrows(bytes(text)):
            del text[: len(self._vocabulary.tokens[token_ids[sure]])]
            sure += 1
        return token_ids[:sure], token_ids[sure:]

    def marks(self, state: int) -> int:
        """See the protocol."""
        return self._marks.get(state, 0)

    def _number(self, stacks: frozenset[Stack]) -> int:
        if not stacks:
            return DEAD
        if stacks not in self._numbers:
            self._numbers[stacks] = len(self._states)
            self._states.append(stacks)
        return self._numbers[stacks]

    def _begin(self, op: int, below: Any) -> Stack:
        kind, *rest = self._operations[op]
        if kind == OpKind.REPEAT:
            return (StackFrame(op, (rest[1], rest[2])), below)
        return (StackFrame(op, _BEGINNINGS.get(kind, 0)), below)

    def _expand(self, stacks: list[Any]) -> frozenset[Any]:
        """Return the stacks after all epsilon moves: their top reads a byte, or they are empty."""
        ready, seen, todo = set(), set(), list(stacks)
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if stack == EMPTY or self._begins(*stack):
                ready.add(stack)
            if stack != EMPTY:
                todo.extend(self._moves(*stack))
        return frozenset(ready)

    def _moves(self, frame: StackFrame, below: Any) -> list[Any]:
        kind, *rest = self._operations[frame.op]
        if kind == OpKind.SEQ:
            ahead = frame.at + 1
            behind = (StackFrame(frame.op, ahead), below) if ahead < len(rest[0]) else below
            return [self._begin(rest[0][frame.at], behind)]
        if kind == OpKind.REPEAT:
            least, most = frame.at
            found = [below] if least == 0 else []
            if most != 0:
                again = StackFrame(frame.op, (max(least - 1, 0), most - 1 if most > 0 else most))
                found.append(self._begin(rest[0], (again, below)))
            return found
        if kind in (OpKind.TEXT, OpKind.SET, OpKind.LISTED, OpKind.LEXEME):
            return [below] if self._ends(frame) else []
        if kind == OpKind.MARK:
            self._marks_met |= rest[0]
            return [below]
        if kind == OpKind.ANY_ORDER:
            return self._moves_in_any_order(frame, below)
        items = rest[0] if kind == OpKind.CHOICE else rest
        return [self._begin(item, below) for item in items]

    def _ends(self, frame: StackFrame) -> bool:
        """Return whether nothing is left to be read of an operation on bytes."""
        kind, *rest = self._operations[frame.op]
        if kind == OpKind.TEXT:
            return bool(frame.at == len(rest[0]))
        if kind == OpKind.LEXEME:
            return bool(self._lexemes[frame.op].ends(frame.at))
        return kind == OpKind.LISTED and frame.at in rest[0]

    def _moves_in_any_order(self, frame: StackFrame, below: Any) -> list[Any]:
        items, flags, separator, least, most = self._operations[frame.op][1:]
        used, count, is_separated = frame.at
        due = {i for i in range(len(items)) if flags[i] & 1} - used
        taken = [
            i
            for i in range(len(items))
            if (i not in used or flags[i] & 2) and (most < 0 or count + 1 + len(due - {i}) <= most)
        ]
        found = [below] if not is_separated and not due and count >= least else []
        if count and not is_separated:
            behind = StackFrame(frame.op, AnyOrderPlace(used, count, is_separated=True))
            return [*found, self._begin(separator, (behind, below))] if taken else found
        after = count + 1 if most >= 0 else min(count + 1, max(least, 1))
        for i in taken:
            place = AnyOrderPlace(used | {i}, after)
            found.append(self._begin(items[i], (StackFrame(frame.op, place), below)))
        return found

    def _begins(self, frame: StackFrame, below: Any) -> bool:
        """Return whether the top of the stack reads a byte."""
        kind, *rest = self._operations[frame.op]
        if kind == OpKind.TEXT:
            return bool(frame.at < len(rest[0]))
        if kind in (OpKind.LISTED, OpKind.LEXEME):
            return any(self._consume((frame, below), byte) for byte in range(256))
        return bool(kind == OpKind.SET)

    def _consume(self, stack: Any, byte: int) -> list[Any]:
        """Return the stacks after a byte; none if the top does not accept it."""
        if stack == EMPTY:
            return []
        frame, below = stack
        kind, *rest = self._operations[frame.op]
        after: Any = None
        if kind == OpKind.TEXT and rest[0][frame.at : frame.at + 1] == bytes([byte]):
            after = frame.at + 1
        elif kind == OpKind.SET and byte in rest[0]:
            return [below]
        elif kind == OpKind.LISTED:
            read = frame.at + bytes([byte])
            after = read if any(text.startswith(read) for text in rest[0]) else None
        elif kind == OpKind.LEXEME:
            after = self._lexemes[frame.op].step(frame.at, byte)
        return [] if after is None else [(StackFrame(frame.op, after), below)]

    def _tail(self, stack: Any) -> Tail:
        """Return the cheapest text of a stack."""
        path = []
        while stack not in self._stack_tails:
            path.append(stack)
            stack = stack[1]
        tail = self._stack_tails[stack]
        for stack in reversed(path):
            tail = self._tails.prepend(self._cheapest.rest(stack[0]), tail)
            self._stack_tails[stack] = tail
        return tail
