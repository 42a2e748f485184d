"""Latin squares of four symbols, written as CSV."""

from __future__ import annotations

import random

from benchmarks.tasks.case import Case, Question, deal
from benchmarks.tasks.words import SYMBOLS

SIDE = 4


def latin_square(rng: random.Random, longest: int) -> Question:
    """Ask for a square in which each symbol stands once in every row and column.

    The gold square is cyclic, with its rows, columns and symbols dealt anew; `longest` is for lists
    and has no bearing here.
    """
    del longest
    symbols = deal(rng, SYMBOLS, SIDE)
    rows, columns = deal(rng, range(SIDE)), deal(rng, range(SIDE))
    cells = [[symbols[(row + column) % SIDE] for column in columns] for row in rows]
    gold = "\n".join(",".join(row) for row in cells)
    asked = deal(rng, symbols)
    return Question("latin square", ",".join(asked), gold, items=tuple(asked))


def is_square(case: Case, answer: str) -> bool:
    """Accept any square whose rows and columns are permutations of the symbols."""
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.strip().splitlines()]
    if [len(row) for row in rows] != [SIDE] * SIDE:
        return False
    lines = [*rows, *zip(*rows, strict=True)]
    return all(sorted(line) == sorted(case.items) for line in lines)
