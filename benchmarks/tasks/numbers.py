"""Arithmetic: the answer is a number, and carries tie its digits together."""

from __future__ import annotations

import random

from benchmarks.tasks.case import Case, Question, below, number

LETTERS = "abcde"
LARGEST = 99  # of a chain's values


def add(rng: random.Random, longest: int) -> Question:
    """Ask for a sum or a difference of numbers of up to four digits; never below zero."""
    digits = min(4, longest)
    a, b = (number(rng, 1 + below(rng, digits)) for _ in range(2))
    if rng.random() < 0.5:
        return Question("compute", f"{a}+{b}", str(a + b))
    return Question("compute", f"{max(a, b)}-{min(a, b)}", str(max(a, b) - min(a, b)))


def chain(rng: random.Random, longest: int) -> Question:
    """Ask for the last of two to four numbers, each made from the one before."""
    value = number(rng, 1)
    lines = [f"{LETTERS[0]}={value}"]
    for i in range(1, 2 + below(rng, min(3, longest - 1))):
        operand = 1 + below(rng, 9)
        sign = "-" if value >= operand and rng.random() < 0.5 else "+"
        value += operand if sign == "+" else -operand
        lines.append(f"{LETTERS[i]}={LETTERS[i - 1]}{sign}{operand}")
    return Question("solve", ";".join(lines), str(value))


def same_text(case: Case, answer: str) -> bool:
    """Accept the gold answer, spaces around it aside."""
    return answer.strip() == case.gold
