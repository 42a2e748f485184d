"""Facts in a random order, to be written as an object of a given shape."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.tasks.case import Case, Question, below, deal, number, pick
from benchmarks.tasks.words import (
    ANIMALS,
    CITIES,
    COLORS,
    FIRST_NAMES,
    JOBS,
)

WORDS = {
    "name": FIRST_NAMES,
    "friend": FIRST_NAMES,
    "city": CITIES,
    "color": COLORS,
    "animal": ANIMALS,
    "job": JOBS,
}
DIGITS = {"age": 2, "price": 3, "year": 4, "code": 4, "count": 1}
SHAPES = (
    ("name", "age"),
    ("city", "year"),
    ("animal", "color"),
    ("job", "code"),
    ("name", "city", "age"),
    ("animal", "count", "color"),
    ("name", "job", "friend"),
    ("code", "price", "count"),
    ("name", "age", "city", "job"),
    ("animal", "color", "price", "count"),
    ("friend", "city", "color", "year"),
    ("job", "name", "code", "age"),
)
MISSING = 0.15  # how often a fact is left out of the text


def json_extract(rng: random.Random, longest: int) -> Question:
    """Ask for an object with the named keys, in their order; null for what the text omits."""
    keys = pick(rng, [shape for shape in SHAPES if len(shape) <= longest])
    facts = {key: _value(rng, key) for key in keys}
    told = [key for key in keys if rng.random() >= MISSING] or [pick(rng, keys)]
    body = ", ".join(f"{key} is {facts[key]}" for key in deal(rng, told))
    gold = json.dumps({key: facts[key] if key in told else None for key in keys})
    return Question(f"json {', '.join(keys)}", body, gold, schema=schema(keys))


def schema(keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON Schema of the objects with these keys."""
    return {
        "type": "object",
        "properties": {key: {"type": [_kind(key), "null"]} for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }


def same_object(case: Case, answer: str) -> bool:
    """Accept the gold object, however it is spaced and ordered."""
    try:
        return bool(json.loads(answer) == json.loads(case.gold))
    except ValueError:
        return False


def _kind(key: str) -> str:
    return "integer" if key in DIGITS else "string"


def _value(rng: random.Random, key: str) -> str | int:
    if key in WORDS:
        return pick(rng, WORDS[key])
    return number(rng, 1 + below(rng, DIGITS[key]))
