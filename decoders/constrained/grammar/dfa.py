"""Regular expressions to DFAs over bytes: compiled, or in Python without compiled kernels."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise

import numpy as np

from plait.decoders.constrained.grammar import chars
from plait.decoders.constrained.grammar.json_text import PLAIN
from plait.decoders.constrained.grammar.nodes import NOTHING, Lexeme, Node, Ranges
from plait.decoders.constrained.grammar.regex import Expr, TooManyStates, transitions
from plait.decoders.constrained.grammar.utf8 import utf8_rows
from plait.kernels import grammar
from plait.kernels.grammar import DfaParts
from plait.kernels.grammar.lexeme import LexemeAutomaton

MAX_STATES = 20_000  # of one expression, over characters
MAX_STEPS = 3_000_000  # parts of expressions looked at: about half a second
_KINDS = {"set": 0, "cat": 1, "or": 2, "repeat": 3, "and": 4, "not": 5}

Row = tuple[tuple[tuple[int, int], ...], int]  # byte ranges of a character, and the state behind
Edges = list[tuple[int, int, int]]  # first and last byte, target


def lexeme(expr: Expr, least: int, most: int | None, *, is_quoted: bool) -> Node:
    """Return the node of the expression's texts of least..most characters.

    Quoted: as JSON strings have them inside, characters that may stand there plainly do, the others
    are written as the short escape or as \\u00xx. The length is counted: it costs no states.

    Raises:
        TooManyStates: the automaton is larger, or more work, than allowed.
    """
    dfa = determinise(expr, is_quoted)
    limit = -1 if most is None else most
    is_counted = least > 0 or most is not None  # all else that a dfa holds is possible
    if dfa is None or (is_counted and not _is_possible(dfa, least, limit)):
        return NOTHING
    return Lexeme(dfa, least, most)


def _is_possible(dfa: DfaParts, least: int, most: int) -> bool:
    if not grammar.available():
        return LexemeAutomaton(dfa, least, most).missing(0, 0) >= 0
    try:
        return bool(grammar.extension().is_possible(dfa, least, most))
    except grammar.extension().TooLargeError as error:
        raise TooManyStates(str(error)) from None


@lru_cache(256)  # formats, above all
def determinise(expr: Expr, is_quoted: bool) -> DfaParts | None:
    """Return the automaton of an expression; None: no text is in it.

    Raises:
        TooManyStates: it is larger, or more work, than allowed.
    """
    if not grammar.available():
        return determinise_reference(expr, is_quoted=is_quoted)
    try:
        found: DfaParts | None = grammar.extension().determinise(
            _rows(expr), is_quoted, MAX_STATES, MAX_STEPS
        )
    except grammar.extension().TooLargeError as error:
        raise TooManyStates(str(error)) from None
    return found


def _rows(root: Expr) -> list[tuple[int, list[int], Ranges, int, int]]:
    """Return the expression's parts, each behind those that it is made of."""
    numbers: dict[Expr, int] = {}
    rows: list[tuple[int, list[int], Ranges, int, int]] = []
    todo = [root]
    while todo:
        expr = todo[-1]
        missing = [item for item in expr.items if item not in numbers]
        if missing:
            todo.extend(missing)
            continue
        todo.pop()
        if expr not in numbers:
            numbers[expr] = len(rows)
            most = -1 if expr.most is None else expr.most
            items = [numbers[item] for item in expr.items]
            rows.append((_KINDS[expr.kind], items, expr.ranges, expr.least, most))
    return rows


def determinise_reference(root: Expr, *, is_quoted: bool) -> DfaParts | None:
    """Reference of `determinise`; also the fallback without compiled kernels."""
    states = {root: 0}
    found: list[dict[Expr, Ranges]] = []
    for expr in (order := [root]):
        found.append(transitions(expr))
        for target in found[-1]:
            if target not in states:
                states[target] = len(states)
                order.append(target)
        if len(states) > MAX_STATES:
            raise TooManyStates(f"its automaton has more than {MAX_STATES} states")
    encoder = _Encoder(len(order))
    for state, targets in enumerate(found):
        rows = [
            (spelling, states[target])
            for target, ranges in targets.items()
            for spelling in _spellings(ranges, is_quoted)
        ]
        encoder.edges[state] = encoder.branch(rows)
    return encoder.finish([expr.is_nullable for expr in order])


def _spellings(ranges: Ranges, is_quoted: bool) -> list[tuple[tuple[int, int], ...]]:
    plain = chars.intersect(ranges, PLAIN) if is_quoted else ranges
    found = [row for first, last in plain for row in utf8_rows(first, last)]
    for code in (*range(0x20), 0x22, 0x5C) if is_quoted else ():
        if chars.contains(ranges, code):
            escape = json.dumps(chr(code)).encode()[1:-1]
            found.append(tuple((byte, byte) for byte in escape))
    return found


class _Encoder:
    """States by number: first those between characters, then those inside of one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.edges: list[Edges] = [[] for _ in range(size)]
        self._inside: dict[tuple[Row, ...], int] = {}

    def branch(self, rows: list[Row]) -> Edges:
        """Return the edges of a state from which the rows go out; none begins with another."""
        cuts = sorted({cut for (first, *_), _ in rows for cut in (first[0], first[1] + 1)})
        edges: Edges = []
        for low, end in pairwise(cuts):
            behind = [(row[1:], t) for row, t in rows if row[0][0] <= low <= row[0][1]]
            if behind:
                edges.append((low, end - 1, behind[0][1] if not behind[0][0] else self._in(behind)))
        return edges

    def _in(self, rows: list[Row]) -> int:
        key = tuple(sorted(rows))
        if key not in self._inside:
            edges = self.branch(rows)
            self._inside[key] = len(self.edges)
            self.edges.append(edges)
        return self._inside[key]

    def finish(self, accepts: list[bool]) -> DfaParts | None:
        """Return the automaton of the states that lead to an accepting one."""
        table = np.full((len(self.edges), 256), -1, np.int32)
        for state, edges in enumerate(self.edges):
            for first, last, target in edges:
                table[state, first : last + 1] = target
        alive = np.zeros(len(self.edges), bool)
        alive[: self._size] = accepts
        while (wider := alive | ((table >= 0) & alive[table]).any(axis=1)).sum() > alive.sum():
            alive = wider
        if not alive[0]:
            return None
        numbers = np.where(alive, np.cumsum(alive) - 1, -1)
        table = np.where(table >= 0, numbers[table], -1)[alive].astype(np.int32)
        boundaries = (np.arange(len(self.edges)) < self._size)[alive]
        accepting = np.zeros(len(self.edges), np.uint8)
        accepting[: self._size] = accepts
        flags = boundaries.astype(np.uint8).tobytes()
        return bytes(range(256)), 256, table.tobytes(), accepting[alive].tobytes(), flags
