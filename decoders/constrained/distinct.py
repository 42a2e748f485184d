"""Members that must be distinct: the items of an array with uniqueItems, the keys of an object.

A grammar can't hold them, so the text is read beside it. Where a bracket opens whose members must
be distinct the automaton tells a mark; a token with which a member would repeat an earlier one is
refused, though its bit is set (decoders/contract/constraint.py, is_exact).

Law: a token is accepted only if some text of distinct members is known that goes on with it, and
`closing_tokens` is its end; so there is always a token that is accepted, and no text comes to a
dead end. Where that takes a search, the search is bounded: a token of which nothing is known in
the end is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plait.decoders.constrained.grammar.nodes import GROWING
from plait.decoders.constrained.matcher import GrammarConstraint
from plait.decoders.constrained.members import Place, Repeated, levels, may_repeat, read_byte

if TYPE_CHECKING:
    from torch import Tensor

TURNS = (1, 2, 3)  # tokens of one repair, so many at most
MAX_BACK = 24  # tokens that a repair may take back
NUM_OTHERS = 64  # tokens that are tried in one place
MAX_TRIED = 1024  # and in all
MANY = 1 << 30
NO_TOKEN = -1


class DistinctConstraint:
    """A `plait.decoders.contract.constraint.Constraint`: a grammar, and members that differ."""

    is_exact: ClassVar[bool] = False

    def __init__(self, grammar: GrammarConstraint) -> None:
        """Take a constraint at its start; see `is_possible`."""
        self.grammar = grammar
        self._text = bytearray()
        self._lengths: list[int] = [0]  # of the text, one more than tokens
        self._places = [Place()]
        self._ends: list[tuple[int, ...] | None] = [None]  # None: the grammar's own
        self._set_end()

    @property
    def place(self) -> Place:
        """How far the text has been read."""
        return self._places[-1]

    @property
    def is_unsure(self) -> bool:
        """Whether the shortest end of the grammar may repeat a member."""
        return bool(self.grammar.marks & GROWING) or may_repeat(self._places[-1])

    def num_members(self, depth: int) -> int:
        """Return how many members the open bracket at a depth has; MANY: it is closed."""
        open_levels = [*levels(self._places[-1].level)]
        return MANY if depth > len(open_levels) else len(open_levels[-depth].seen)

    @property
    def is_possible(self) -> bool:
        """Whether some text of distinct members is known."""
        return self._ends[-1] is not None or not self.is_unsure

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Write what the grammar allows, which is more than is accepted."""
        return self.grammar.fill_bitmask(bitmask, row)

    def accept_token(self, token_id: int) -> bool:
        """Advance; False (and unchanged) if the token is illegal, or no end is known behind it."""
        end = self._ends[-1]
        try:
            if not self.advance(token_id):
                return False
        except Repeated:
            return False
        if end and end[0] == token_id:
            self._ends[-1] = end[1:]
            return True
        if self._set_end():
            return True
        self.rollback(1)
        return False

    def accept_text(self, text: bytes) -> bool:
        """Advance over bytes in front of the first token; as GrammarConstraint.accept_text."""
        marks = self.grammar.marks_along(text)
        if not self.grammar.accept_text(text):
            return False
        self._text += text
        try:
            self._places[-1] = self._read(self._places[-1], len(text), marks)
        except Repeated:
            return False
        self._lengths[-1] = len(text)
        return self._set_end()

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        if num_tokens > 0:
            self.grammar.rollback(num_tokens)
            for row in (self._lengths, self._places, self._ends):
                del row[-num_tokens:]
            del self._text[self._lengths[-1] :]

    def fork(self) -> DistinctConstraint:
        """Return an independent copy. Cost: the length of the text."""
        copy = object.__new__(DistinctConstraint)
        copy.grammar = self.grammar.fork()
        copy._text = self._text.copy()
        copy._lengths = self._lengths.copy()
        copy._places = self._places.copy()
        copy._ends = self._ends.copy()
        return copy

    def is_accepting(self) -> bool:
        """Return whether the text so far is complete."""
        return self.grammar.is_accepting()

    def is_terminated(self) -> bool:
        """Return whether only the end of the text can follow."""
        return self.grammar.is_terminated()

    def min_tokens(self) -> int:
        """Return the length of `closing_tokens`."""
        end = self._ends[-1]
        return self.grammar.min_tokens() if end is None else len(end)

    def closing_tokens(self) -> Sequence[int]:
        """Return tokens that complete the text; they are accepted."""
        end = self._ends[-1]
        return self.grammar.closing_tokens() if end is None else end

    def forced_tokens(self) -> Sequence[int]:
        """Return the grammar's: what is forced without a look at members is forced with it."""
        return self.grammar.forced_tokens()

    def boundary_tokens(self) -> Sequence[int]:
        """Return the grammar's."""
        return self.grammar.boundary_tokens()

    def advance(self, token_id: int) -> bool:
        """Advance without a look at what may come then; False (and unchanged) if it is illegal.

        Raises:
            Repeated: a member would be repeated; nothing has changed.
        """
        text = self.grammar.text_of(token_id)
        marks = self.grammar.marks_along(text) if b"[" in text or b"{" in text else b""
        if not self.grammar.accept_token(token_id):
            return False
        self._text += text
        try:
            place = self._read(self._places[-1], len(text), marks)
        except Repeated:
            del self._text[self._lengths[-1] :]
            self.grammar.rollback(1)
            raise
        self._places.append(place)
        self._lengths.append(len(self._text))
        self._ends.append(None)
        return True

    def _read(self, place: Place, count: int, marks: bytes) -> Place:
        """Return the place behind the last bytes of the text."""
        first = len(self._text) - count
        for i in range(count):
            place = read_byte(place, self._text, first + i, marks[i] if marks else 0)
        return place

    def _set_end(self) -> bool:
        """Find how the text ends, where the grammar's own end may repeat a member."""
        if not self.is_unsure:
            return True
        self._ends[-1] = _EndSearch(self).run()
        return self._ends[-1] is not None


@dataclass(frozen=True, slots=True)
class Goal:
    """More members in the open bracket at a depth."""

    depth: int
    num_members: int


class _EndSearch:
    """Searches for an end of a text: the grammar's shortest, repaired where a member repeats.

    A repair takes other tokens within the last ones, until that member is another one. Cost:
    usually a walk over some of the shortest end; at most MAX_TRIED tokens more.
    """

    def __init__(self, constraint: DistinctConstraint) -> None:
        self._constraint = constraint
        self._num_left = MAX_TRIED
        self._goal = Goal(0, 0)  # of the next repair
        self._path: list[int] = []

    def run(self) -> tuple[int, ...] | None:
        """Return the tokens of an end; None: none was found. The constraint stays where it is."""
        found = None
        while True:
            if self._is_walked(lambda: not self._constraint.is_unsure):
                found = (*self._path, *self._constraint.grammar.closing_tokens())
                break
            if not any(self._is_repaired(turns) for turns in TURNS):
                break
        self._back_to(0)
        return found

    def _is_walked(self, is_there: Callable[[], bool]) -> bool:
        """Follow the shortest end until it is there or over; False: a member is repeated."""
        for token_id in self._constraint.grammar.closing_tokens():
            if is_there():
                break
            if not self._step(token_id):
                return False
        return True

    def _is_repaired(self, turns: int) -> bool:
        """Go on from where a member is repeated with up to so many other tokens, or stay."""
        before = self._path[-MAX_BACK:]
        goal = self._goal
        if self._turned(turns, goal, len(self._path) - len(before)):
            return True
        self._goal = goal
        for token_id in before:
            self._step(token_id)
        return False

    def _turned(self, turns: int, goal: Goal, floor: int) -> bool:
        """Take another token here or before, down to a place of the path, and reach the goal.

        False: none leads there, and the path ends at that place.
        """
        removed = NO_TOKEN
        while True:
            for token_id in self._constraint.grammar.short_tokens(NUM_OTHERS):
                if token_id == removed or not self._num_left or not self._step(token_id):
                    continue
                self._num_left -= 1
                here = len(self._path)
                if self._is_walked(lambda: self._is_reached(goal)):
                    return True
                if turns > 1 and self._turned(turns - 1, goal, here):
                    return True
                self._back_to(here - 1)
            if len(self._path) <= floor:
                return False
            removed = self._path[-1]
            self._back_to(len(self._path) - 1)

    def _is_reached(self, goal: Goal) -> bool:
        return self._constraint.num_members(goal.depth) > goal.num_members

    def _step(self, token_id: int) -> bool:
        try:
            if not self._constraint.advance(token_id):
                return False
        except Repeated as repeated:
            depth = repeated.depth
            self._goal = Goal(depth, self._constraint.num_members(depth))
            return False
        self._path.append(token_id)
        return True

    def _back_to(self, length: int) -> None:
        self._constraint.rollback(len(self._path) - length)
        del self._path[length:]
