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

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plait.decoders.constrained.closing import Tail, tokens_of
from plait.decoders.constrained.grammar.for_matcher import MAX_TOKEN_BYTES
from plait.decoders.constrained.grammar.nodes import Grammar
from plait.decoders.constrained.program import Op, Operation, Program, build_program
from plait.decoders.constrained.vocabulary import Vocabulary

MAX_STACKS = 4096  # of one state; beyond, the dearest are given up
MAX_KNOWN = 200_000  # remembered stacks and tails of one grammar
MAX_FORCED = 256  # bytes of one forced text


@dataclass(slots=True, eq=False)
class Stack:
    """What is still to be matched: an operation, then the stack below."""

    op: Op
    below: Stack | None
    room: int  # the least that is left in a count that only this automaton keeps
    tail: Tail | None = None  # its cheapest text; computed when asked for


@dataclass(slots=True, eq=False)
class State:
    """The stacks that fit the bytes read so far; each begins with a byte, or is the end."""

    stacks: tuple[Stack, ...]
    ghosts: tuple[Stack, ...]  # what only the matcher, which leaves out long counts, goes on with
    closing: Tail
    is_accepting: bool
    is_final: bool  # accepting, and nothing can follow
    room: int  # bytes that fit into every count which the matcher leaves out
    successors: dict[int, State | None] = field(default_factory=dict)
    keep: NDArray[np.int32] | None = None  # see Automaton.keep
    forced: Forced | None = None  # see Automaton.forced


class Forced(NamedTuple):
    """Tokens of the text that every completion goes on with: those that leave only the spelling
    open, and those that spell its rest, over whose end other legal tokens reach."""

    sure: tuple[int, ...] = ()
    border: tuple[int, ...] = ()


class Automaton:
    """All that was learnt about one grammar; shared by its requests, used by one thread."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._program: Program = build_program(grammar, vocabulary)
        nothing = self._program.text(b"")
        self._bottom = Stack(nothing, None, MAX_TOKEN_BYTES, self._program.tails.end)
        self._stacks: dict[tuple[Op, Stack], Stack] = {}
        self._states: dict[tuple[frozenset[Stack], frozenset[Stack]], State] = {}
        start = self._state(self._expand([self._push(self._program.root, self._bottom)], []), [])
        assert start is not None, "a pruned grammar matches something"
        self.start: State = start
        self._limit = MAX_KNOWN + 2 * len(self._program.tails)

    @property
    def counts(self) -> bool:
        """Whether some tokens that the matcher allows do not fit."""
        return bool(self._program.counted)

    def step(self, state: State, byte: int) -> State | None:
        """Return the state after one more byte; None: the byte does not fit."""
        try:
            return state.successors[byte]
        except KeyError:
            self._bound()
            after = state.successors[byte] = self._after(state, byte)
            return after

    def _after(self, state: State, byte: int) -> State | None:
        spilt: list[Stack] = []
        ready = self._expand(self._consume(state.stacks, byte), spilt)
        ghosts = self._haunt(self._consume(state.ghosts, byte) + spilt)
        return self._state(ready, [ghost for ghost in ghosts if ghost not in ready])

    def _haunt(self, stacks: list[Stack]) -> list[Stack]:
        """Return the expanded ghosts; counts inside of them go on without end as well."""
        ready: dict[Stack, None] = {}
        seen: set[Stack] = set()
        while stacks:
            seen.update(stacks)
            spilt: list[Stack] = []
            ready.update(dict.fromkeys(self._expand(stacks, spilt)))
            stacks = [stack for stack in spilt if stack not in seen]
        return list(ready)

    def _consume(self, stacks: Iterable[Stack], byte: int) -> list[Stack]:
        """Return the stacks that begin with the byte, after it."""
        found = []
        for stack in stacks:
            operation = self._program[stack.op]
            if stack.below is None:
                continue
            if operation.kind == "set":
                if byte in operation.allowed:
                    found.append(stack.below)
            elif operation.text[0] == byte:
                found.append(self._push(self._program.text(operation.text[1:]), stack.below))
        return found

    def _state(self, ready: Sequence[Stack], ghosts: Sequence[Stack]) -> State | None:
        if not ready:
            return None
        key = (frozenset(ready), frozenset(ghosts))
        known = self._states.get(key)
        if known is None:
            known = self._states[key] = self._make_state(ready, ghosts)
        return known

    def _make_state(self, ready: Sequence[Stack], ghosts: Sequence[Stack]) -> State:
        tails = {stack: self._tail(stack) for stack in ready}
        stacks = sorted(ready, key=lambda stack: tails[stack].tokens)[:MAX_STACKS]
        accepting = self._bottom in tails
        return State(
            stacks=tuple(stacks),
            ghosts=tuple(ghosts),
            closing=tails[stacks[0]],
            is_accepting=accepting,
            is_final=accepting and len(ready) == 1,
            room=0 if ghosts else min(stack.room for stack in ready),
        )

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

    def forced(self, state: State) -> Forced:
        """Return tokens of the text that every completion goes on with.

        Law: wherever a sure one begins, every legal token is a prefix of the forced text, so that
        choosing among them would only be choosing a spelling. The fewest tokens are taken.
        """
        if state.forced is None:
            text = self._forced_text(state)
            tails = self._program.tails
            token_ids = tuple(tokens_of(tails.prepend(text, tails.end)))
            sure = 0
            while sure < len(token_ids) and not self._vocabulary.outgrows(text):
                text = text[len(self._vocabulary.token_bytes[token_ids[sure]]) :]
                sure += 1
            state.forced = Forced(token_ids[:sure], token_ids[sure:])
        return state.forced

    def _forced_text(self, state: State) -> bytes:
        """Return the bytes that come next whatever is chosen, at most MAX_FORCED."""
        text = bytearray()
        at: State | None = state
        while at is not None and not at.is_accepting and len(text) < MAX_FORCED:
            following = self._following(at)
            if len(following) != 1:
                break
            text += bytes(following)
            at = self.step(at, text[-1])
        return bytes(text)

    def _following(self, state: State) -> set[int]:
        """Return the bytes that the state's stacks begin with; all, if stacks were given up."""
        if len(state.stacks) == MAX_STACKS:
            return set(range(256))
        found: set[int] = set()
        for stack in state.stacks:
            operation = self._program[stack.op]
            found.update(operation.allowed if operation.kind == "set" else operation.text[:1])
        return found

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
                following = spellings[low][:depth] + bytes([byte + 1]) if byte < 0xFF else None
                end = bisect_left(spellings, following, low, high) if following else high
                after = self.step(at, byte)
                if after is None:
                    dead += range(low, end)
                elif after.room < MAX_TOKEN_BYTES:
                    todo.append((low, end, depth + 1, after))
                low = end
        return dead

    def _expand(self, stacks: Iterable[Stack], spilt: list[Stack]) -> list[Stack]:
        """Return the stacks after all free moves: they begin with a byte, or are empty.

        Where a count that the matcher leaves out has run out, what the matcher goes on with is
        added to `spilt`.
        """
        ready: dict[Stack, None] = {}
        todo = list(stacks)
        seen = set(todo)
        while todo:
            stack = todo.pop()
            operation = self._program[stack.op]
            if stack is self._bottom or operation.kind == "set" or operation.text:
                ready[stack] = None
                continue
            if (
                operation.kind == "repeat"
                and operation.most == 0
                and operation.items[0] in self._program.counted
            ):
                assert stack.below is not None
                endless = self._program.repeat(operation.items[0], operation.least, None)
                spilt.append(self._push(endless, stack.below))
            for moved in self._moves(stack):
                if moved not in seen:
                    seen.add(moved)
                    todo.append(moved)
        return list(ready)

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
            known = self._stacks[op, below] = Stack(op, below, self._room(op, below))
        return known

    def _is_counted(self, repeat: Operation) -> bool:
        return repeat.items[0] in self._program.counted

    def _room(self, op: Op, below: Stack) -> int:
        operation = self._program[op]
        if operation.kind == "repeat" and self._is_counted(operation):
            return min(below.room, MAX_TOKEN_BYTES if operation.most is None else operation.most)
        return below.room

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
        if len(self._stacks) + len(self._program.tails) > self._limit:
            self._stacks.clear()
            self._states.clear()
            self._program.tails.forget()
            self.start.successors.clear()
