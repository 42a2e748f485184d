"""Multiples of a number (multipleOf) as a DFA over digits with one state for each remainder.

It reads the digits of texts which an expression allows. It has no cycle, since numbers have a
largest length, and states that go on alike become one from the end on.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from decimal import Decimal
from math import lcm

from plait.decoders.constrained.grammar import chars
from plait.decoders.constrained.grammar.nodes import NOTHING, Lexeme, Node
from plait.decoders.constrained.grammar.regex import Expr, TooManyStates, transitions
from plait.kernels.grammar import DfaParts

MAX_UNIT = 3000  # of a step, once its powers of ten are taken out
_BEFORE_POINT = -1
_DEAD = -1
_ALPHABET = "-.0123456789"
_Row = tuple[bool, tuple[int, ...]]  # whether a number may end, and the state behind each character
_State = tuple[int, int]  # the class of the digits before the last zeros, and how many zeros


class RemainderAutomaton:
    """What the digits read so far leave when they are divided by a step.

    The step is u / 10^places or u * 10^zeros; the multiples are those of u with so many zeros
    behind. Remainders of u that no further digits tell apart are one class. Multiples of `others`
    are not counted as multiples.

    Raises:
        TooManyStates: u is larger than MAX_UNIT.
    """

    def __init__(self, step: Decimal, others: Sequence[Decimal] = ()) -> None:
        self.places = max(unit_of(number)[1] for number in (step, *others))
        whole, *without = (_scaled(number, self.places) for number in (step, *others))
        unit = lcm(whole, *without)
        self._zeros = 0
        while unit % 10 == 0 and not without:
            unit, whole, self._zeros = unit // 10, whole // 10, self._zeros + 1
        if unit > MAX_UNIT:
            raise TooManyStates
        is_wanted = [r % whole == 0 and all(r % other for other in without) for r in range(unit)]
        found = _classes(is_wanted)
        self._next = {
            number: [found[(10 * remainder + digit) % unit] for digit in range(10)]
            for remainder, number in enumerate(found)
        }
        self._wanted = {number for number, ok in zip(found, is_wanted, strict=True) if ok}
        self.start: _State = (found[0], self._zeros)
        self.count = len(self._next) * (1 + self._zeros)

    def after(self, state: _State, digit: int) -> _State:
        """Return the state after one more digit."""
        found, zeros = state
        if digit == 0 and zeros < self._zeros:
            return found, zeros + 1
        for _ in range(zeros if digit else 0):
            found = self._next[found][0]
        return self._next[found][digit], 0 if digit else zeros

    def is_multiple(self, state: _State, decimals: int) -> bool:
        """Tell whether digits, so many of them behind the point, are a multiple."""
        for _ in range(self.places - decimals):
            state = self.after(state, 0)
        found, zeros = state
        return found in self._wanted and zeros == self._zeros


def _scaled(number: Decimal, places: int) -> int:
    unit, own = unit_of(number)
    return unit * int(10 ** (places - own))


def _classes(is_wanted: Sequence[bool]) -> list[int]:
    """Return the class of each remainder: the coarsest partition that digits respect (Moore)."""
    unit = len(is_wanted)
    found = list(map(int, is_wanted))
    count = len(set(found))
    while True:
        numbers: dict[tuple[int, ...], int] = {}
        finer = []
        for remainder in range(unit):
            ahead = (found[(10 * remainder + digit) % unit] for digit in range(10))
            finer.append(numbers.setdefault((found[remainder], *ahead), len(numbers)))
        if len(numbers) == count:
            return found
        found, count = finer, len(numbers)


def multiples(expr: Expr, remainders: RemainderAutomaton, *, max_states: int) -> Node:
    """Return the node of an expression's numbers that are multiples, written with no more decimals
    than the step has.

    Args:
        expr: numbers without exponent, at most a few dozen characters long.

    Raises:
        TooManyStates: more than max_states would be needed.
    """
    reader = _MultiplesAutomaton(remainders, max_states)
    if reader.state(expr, remainders.start, _BEFORE_POINT) == _DEAD:
        return NOTHING
    return Lexeme(reader.parts(), 0, None)


def unit_of(step: Decimal) -> tuple[int, int]:
    """Return whole numbers n and p so that the step is n / 10^p, p as small as it can be."""
    _, digits, exponent = step.normalize().as_tuple()
    assert isinstance(exponent, int), "a step is finite"
    return int("".join(map(str, digits))) * 10 ** max(exponent, 0), max(-exponent, 0)


class _MultiplesAutomaton:
    """States of the automaton: what may follow, the remainder so far, the decimals so far."""

    def __init__(self, remainders: RemainderAutomaton, max_states: int) -> None:
        self._remainders = remainders
        self._room = max_states
        self._states: dict[tuple[Expr, _State, int], int] = {}
        self._numbers: dict[_Row, int] = {}  # states that go on alike are one
        self._steps: dict[Expr, list[tuple[str, Expr]]] = {}

    def state(self, expr: Expr, remainder: _State, decimals: int) -> int:
        """Return the number of a state; those behind it have lower ones."""
        key = (expr, remainder, decimals)
        found = self._states.get(key)
        if found is None:
            self._room -= 1
            if self._room < 0:
                raise TooManyStates
            found = self._states[key] = self._number(expr, remainder, decimals)
        return found

    def parts(self) -> DfaParts:
        """Return the automaton that starts at the state of the highest number."""
        last = len(self._numbers) - 1
        rows = list(self._numbers)[::-1]
        following = array("i")
        for _, targets in rows:
            following.extend(_DEAD if target == _DEAD else last - target for target in targets)
            following.append(_DEAD)
        classes = bytes(_ALPHABET.find(chr(b)) % (len(_ALPHABET) + 1) for b in range(256))
        accepts = bytes(is_end for is_end, _ in rows)
        boundaries = bytes([1]) * len(rows)
        return classes, len(_ALPHABET) + 1, following.tobytes(), accepts, boundaries

    def _number(self, expr: Expr, remainder: _State, decimals: int) -> int:
        targets = [_DEAD] * len(_ALPHABET)
        for char, following in self._ahead(expr):
            targets[_ALPHABET.index(char)] = self._target(char, following, remainder, decimals)
        is_end = expr.is_nullable and self._remainders.is_multiple(remainder, max(decimals, 0))
        if not is_end and set(targets) == {_DEAD}:
            return _DEAD
        return self._numbers.setdefault((is_end, tuple(targets)), len(self._numbers))

    def _target(self, char: str, following: Expr, remainder: _State, decimals: int) -> int:
        if char == "-":
            return self.state(following, remainder, decimals)
        if char == ".":
            return self.state(following, remainder, 0) if self._remainders.places else _DEAD
        if decimals == self._remainders.places and decimals != _BEFORE_POINT:
            return _DEAD
        further = decimals if decimals == _BEFORE_POINT else decimals + 1
        return self.state(following, self._remainders.after(remainder, int(char)), further)

    def _ahead(self, expr: Expr) -> list[tuple[str, Expr]]:
        found = self._steps.get(expr)
        if found is None:
            found = self._steps[expr] = [
                (char, target)
                for target, ranges in transitions(expr).items()
                for char in _ALPHABET
                if chars.contains(ranges, ord(char))
            ]
        return found
