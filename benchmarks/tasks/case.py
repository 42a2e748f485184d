"""Cases of a task: how they are drawn from a seed, and how answers are parsed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

TEMPLATES = 3
HELD_OUT_TEMPLATE = 2  # of every task: no training case is worded so
TRAINING_SEEDS = range(1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 2_000_000)

# Frames around what is asked (`verb`) and what it is asked of (`body`).
_FRAMES = (
    "{body} -> {verb}",
    "{verb}: {body}",
    "Now {verb}, given {body}",
    "{body}\n{verb}, please",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One question, one right answer to it, and what a judge has to know of the others."""

    task: str
    prompt: str
    gold: str
    template: int  # 0..TEMPLATES-1
    schema: Mapping[str, Any] | None = None  # the JSON Schema that every right answer obeys
    items: tuple[str, ...] = ()  # what the question is about, in its order
    added: str = ""  # the item to put in


@dataclass(frozen=True, slots=True)
class Question:
    """A case before it is worded: the same fields, with the prompt in two parts."""

    verb: str
    body: str
    gold: str
    schema: Mapping[str, Any] | None = None
    items: tuple[str, ...] = ()
    added: str = ""


def word(task: str, position: int, question: Question, template: int) -> Case:
    """Put a question into one of its task's three wordings.

    Four frames serve all tasks, and each task's held-out frame is another task's trained one: what
    the held-out template asks of a model is a new pair of task and frame, not a new word.

    Args:
        task: Its name.
        position: The number of the task, which picks its frames.
        question: What to ask.
        template: 0..2.
    """
    frame = _FRAMES[(position + template) % len(_FRAMES)]
    return Case(
        task=task,
        prompt=frame.format(verb=question.verb, body=question.body),
        gold=question.gold,
        template=template,
        schema=question.schema,
        items=question.items,
        added=question.added,
    )


def generator(task: str, seed: int, index: int) -> random.Random:
    """Return the case's own random generator: the same on every machine and Python.

    Only `random()` of it may be called, the one method whose sequence Python promises to keep.
    """
    return random.Random(f"{task}/{seed}/{index}")


def below(rng: random.Random, end: int) -> int:
    """Draw a whole number from 0 to end - 1."""
    return int(rng.random() * end)


def pick(rng: random.Random, values: Sequence[T]) -> T:
    """Draw one value."""
    return values[below(rng, len(values))]


def deal(rng: random.Random, values: Sequence[T], count: int | None = None) -> list[T]:
    """Draw `count` values without putting any back; None: all of them, in a random order."""
    left = list(values)
    size = len(left) if count is None else count
    return [left.pop(below(rng, len(left))) for _ in range(size)]


def number(rng: random.Random, digits: int) -> int:
    """Draw a number of exactly so many digits; of one digit, 0 too."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    return low + below(rng, 10**digits - low)


def write_list(items: Sequence[str]) -> str:
    """Write items as a list of strings: `["Ada Hale", "Leo Frost"]`."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def read_list(text: str) -> list[str] | None:
    """Read what stands between the first bracket and the last, leniently; None without brackets.

    Source: ParallelBench, arXiv:2510.04767: cut at commas, spaces and quotes stripped.
    """
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end < start:
        return None
    inner = text[start + 1 : end].strip()
    return [part.strip().strip("\"'") for part in inner.split(",")] if inner else []
