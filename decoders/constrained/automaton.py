"""The pushdown automaton over bytes that counts the tokens to the nearest end.

It runs beside the matcher and is determinised while it runs: a `State` is a set of stacks, equal
stacks and equal states are the same object, and each state remembers its successors. Walking a
token that was met before costs one dictionary look-up a byte.

Law: `State.closing` spells a completion of what was read (checked by feeding it to the matcher),
and after its first token the new state's closing is at least one token shorter. So whoever keeps
`closing.tokens <= tokens left` can always end in time. It is a bound from above of the true
minimum: alternatives are compared by their own cost, not in context.

Source: the idea is TruncProof's (Nagashima et al. 2026, arXiv:2605.13076): tokens to accept,
from Dijkstra over productions. Differences: bytes instead of an LL(1) lexer, sets of stacks for
ambiguous grammars, and the exact segmentation of the closing text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plait.decoders.constrained.closing import Tail
from plait.decoders.constrained.grammar.for_matcher import MAX_TOKEN_BYTES
from plait.decoders.constrained.grammar.nodes import Grammar
from plait.decoders.constrained.program import Op, Program, build_program
from plait.decoders.constrained.vocabulary import Vocabulary

MAX_STACKS = 4096  # of one state; beyond, the dearest are given up
MAX_KNOWN = 200_000  # remembered stacks and tails of one grammar


@dataclass(slots=True, eq=False)
class Stack:
    """What is still to be matched: an operation, then the stack below."""

    op: Op
    below: Stack | None
    tail: Tail | None = None  # its cheapest text; computed when asked for


@dataclass(slots=True, eq=False)
class State:
    """The stacks that fit the bytes read so far; each begins with a byte, or is the end."""

    stacks: tuple[Stack, ...]
    closing: Tail
    is_accepting: bool
    is_final: bool  # accepting, and nothing can follow
    room: int  # characters before some count runs out, where the matcher does not count
    successors: dict[int, State | None] = field(default_factory=dict)
    keep: NDArray[np.int32] | None = None  # see Automaton.keep


class Automaton:
    """All that was learnt about one grammar; shared by its requests, used by one thread."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._program: Program = build_program(grammar, vocabulary)
        self._bottom = Stack(self._program.text(b""), None, self._program.tails.end)
        self._stacks: dict[tuple[Op, Stack], Stack] = {}
        self._states: dict[tuple[frozenset[Stack], bool], State] = {}
        start = self._state([self._push(self._program.root, self._bottom)])
        assert start is not None, "a pruned grammar matches something"
        self.start: State = start

    @property
    def counts(self) -> bool:
        """Whether some tokens that the matcher allows do not fit."""
        return bool(self._program.counted)

    def step(self, state: State, byte: int) -> State | None:
        """Return the state after one more byte; None: the byte does not fit."""
        try:
            return state.successors[byte]
        except KeyError:
            after = state.successors[byte] = self._state(self._consume(state, byte))
            return after

    def _consume(self, state: State, byte: int) -> list[Stack]:
        found = []
        for stack in state.stacks:
            operation = self._program[stack.op]
            if stack.below is None:
                continue
            if operation.kind == "set":
                if byte in operation.allowed:
                    found.append(stack.below)
            elif operation.text[0] == byte:
                found.append(self._push(self._program.text(operation.text[1:]), stack.below))
        return found

    def _state(self, stacks: Iterable[Stack]) -> State | None:
        ready, is_full = self._expand(stacks)
        if not ready:
            return None
        key = (frozenset(ready), is_full)
        known = self._states.get(key)
        if known is None:
            known = self._states[key] = self._make_state(list(ready), is_full=is_full)
            self._bound()
        return known

    def _make_state(self, stacks: list[Stack], *, is_full: bool) -> State:
        tails = {stack: self._tail(stack) for stack in stacks}
        if len(stacks) > MAX_STACKS:
            stacks = sorted(stacks, key=lambda stack: tails[stack].tokens)[:MAX_STACKS]
        accepting = self._bottom in stacks
        closing = min((tails[stack] for stack in stacks), key=lambda tail: tail.tokens)
        is_final = accepting and len(stacks) == 1
        room = 0 if is_full else self._room(stacks)
        return State(tuple(stacks), closing, accepting, is_final, room)

    def _room(self, stacks: Iterable[Stack]) -> int:
        """Return the fewest characters left in a count that only this automaton keeps."""
        if not self._program.counted:
            return MAX_TOKEN_BYTES
        return min(map(self._stack_room, stacks))

    def _stack_room(self, stack: Stack) -> int:
        """Return the room in the innermost repetition; its counter lies right below the item."""
        at: Stack | None = stack
        for _ in range(MAX_TOKEN_BYTES):
            if at is None:
                break
            operation = self._program[at.op]
            if operation.kind == "repeat":
                most = operation.most
                is_counted = most is not None and operation.items[0] in self._program.counted
                return most if is_counted and most is not None else MAX_TOKEN_BYTES
            at = at.below
        return MAX_TOKEN_BYTES

    def keep(self, state: State) -> NDArray[np.int32] | None:
        """Return the bitmask row of the tokens that no count forbids here; None: all of them.

        Law: the matcher's mask and this one together allow exactly the tokens that can be stepped.
        Cost: some 10 ms for a state near the end of a count, once.
        """
        if state.room >= MAX_TOKEN_BYTES:
            return None
        if state.keep is None:
            spellings, token_ids = self._vocabulary.in_order
            # No other token is long enough to overrun the count.
            long = [i for i, spelling in enumerate(spellings) if len(spelling) > state.room]
            dead = [long[i] for i in self._overrun(state, [spellings[i] for i in long])]
            state.keep = ~self._vocabulary.bits(token_ids[dead])
        return state.keep

    def _overrun(self, state: State, spellings: list[bytes]) -> list[int]:
        """Return the indices of the ordered spellings that overrun a count of the state."""
        dead: list[int] = []
        todo = [(0, len(spellings), 0, state)]
        while todo:
            # spellings[low:high] share their first `depth` bytes, which lead to `at`.
            low, high, depth, at = todo.pop()
            while low < high and len(spellings[low]) == depth:
                low += 1
            while low < high:
                byte = spellings[low][depth]
                end = bisect_right(spellings, byte, low, high, key=lambda s: s[depth])
                after = self.step(at, byte)
                if after is None:
                    dead += range(low, end)
                elif after.room < MAX_TOKEN_BYTES:
                    todo.append((low, end, depth + 1, after))
                low = end
        return dead

    def _expand(self, stacks: Iterable[Stack]) -> tuple[dict[Stack, None], bool]:
        """Return the stacks after all free moves: they begin with a byte, or are empty.

        The second value tells whether a count that only this automaton keeps has just run out.
        """
        ready: dict[Stack, None] = {}
        is_full = False
        todo = list(stacks)
        seen = set(todo)
        while todo:
            stack = todo.pop()
            operation = self._program[stack.op]
            if stack is self._bottom or operation.kind == "set" or operation.text:
                ready[stack] = None
                continue
            if operation.kind == "repeat" and operation.most == 0:
                is_full |= operation.items[0] in self._program.counted
            for moved in self._moves(stack):
                if moved not in seen:
                    seen.add(moved)
                    todo.append(moved)
        return ready, is_full

    def _moves(self, stack: Stack) -> list[Stack]:
        operation, below = self._program[stack.op], stack.below
        assert below is not None
        if operation.kind == "bytes":
            return [below]
        if operation.kind == "pair":
            head, tail = operation.items
            return [self._push(head, self._push(tail, below))]
        if operation.kind != "repeat":
            return [self._push(item, below) for item in operation.items]
        moved = [below] if operation.least == 0 else []
        if operation.most != 0:
            less = None if operation.most is None else operation.most - 1
            again = self._program.repeat(operation.items[0], max(operation.least - 1, 0), less)
            moved.append(self._push(operation.items[0], self._push(again, below)))
        return moved

    def _push(self, op: Op, below: Stack) -> Stack:
        known = self._stacks.get((op, below))
        if known is None:
            known = self._stacks[op, below] = Stack(op, below)
        return known

    def _tail(self, stack: Stack) -> Tail:
        """Return the cheapest text of a stack, from its deepest part upwards."""
        path = []
        while stack.tail is None:
            assert stack.below is not None
            path.append(stack)
            stack = stack.below
        tail = stack.tail
        for stack in reversed(path):
            tail = self._program.tails.prepend(self._program.cheapest(stack.op), tail)
            stack.tail = tail
        return tail

    def _bound(self) -> None:
        """Forget what can be computed again; states in use keep what they hold."""
        if len(self._stacks) + len(self._program.tails) > MAX_KNOWN:
            self._stacks.clear()
            self._states.clear()
            self._program.tails.forget()
            self.start.successors.clear()
