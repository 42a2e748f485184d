"""What the servers are asked: new texts in every repetition, the same ones for every server."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from typing import Any

Message = dict[str, str]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "email": {"type": "string"},
        "city": {"type": "string"},
        "is_student": {"type": "boolean"},
        "hobbies": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age", "email", "city", "is_student", "hobbies"],
    "additionalProperties": False,
}
AS_PERSON: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": PERSON, "strict": True},
    },
    "temperature": 0.7,
}
NAMES = ("Amir", "Beth", "Chen", "Dora", "Emil", "Fatma", "Gita", "Hugo")
CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Delhi", "Kyoto", "Quito", "Rome")
# Common words, one token each behind a space.
WORDS = re.findall(
    r"\w+",
    """
    time year people way day man thing woman life child world school state family student group
    country problem hand part place case week company system program question work number night
    point home water room mother area money story fact month lot right study book eye job word
    """,
)
WHO = ("lighthouse keeper", "baker", "nurse", "pilot", "gardener", "thief", "teacher", "sailor")
WHERE = ("by the sea", "in an old city", "on a train", "in the mountains", "on a farm", "in space")
WHAT = ("finds a letter", "loses a key", "meets a stranger", "builds a boat", "hears a song")
ABOUT = ("bread", "bees", "bicycles", "the seasons", "ships", "volcanoes", "the piano", "glass")


def story(rng: random.Random) -> str:
    """Return a task whose answer is long and never the same."""
    who, where, what = (rng.choice(words) for words in (WHO, WHERE, WHAT))
    return f"Write a long story about a {who} {where} who {what}."


def question(rng: random.Random) -> str:
    """Return a short question that is answered at length."""
    about, who = rng.choice(ABOUT), rng.choice(WHO)
    return f"Explain what is odd about {about}, as if you talked to a {who}."


def person(rng: random.Random) -> str:
    """Return a task that PERSON is the form for."""
    return (
        f"Make up a person called {rng.choice(NAMES)} who lives in {rng.choice(CITIES)} and "
        "describe them as JSON with name, age, email, city, is_student and hobbies."
    )


def filler(rng: random.Random, words: int) -> str:
    """Return a text of so many words, one token each in most vocabularies."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def copying(rng: random.Random) -> tuple[list[Message], str]:
    """Return a conversation that asks for a JSON text once more, and that text."""
    example, source = random_records(rng, 3), random_records(rng, 5)
    command = f"[{rng.randrange(10**8, 10**9)}] Repeat this JSON exactly:\n"
    messages = [
        {"role": "user", "content": command + example},
        {"role": "assistant", "content": example},
        {"role": "user", "content": command + source},
    ]
    return messages, source


def random_records(rng: random.Random, count: int) -> str:
    """Return JSON of `count` people, at most one a name."""
    return _records(
        (i, name, rng.choice(CITIES), rng.random() < 0.5)
        for i, name in zip(rng.sample(range(10, 99), count), rng.sample(NAMES, count), strict=True)
    )


def records(start: int, stop: int) -> str:
    """Return JSON that says nothing twice in the same words."""
    return _records((i, NAMES[i], CITIES[i], i % 2 == 0) for i in range(start, stop))


def _records(people: Iterable[tuple[int, str, str, bool]]) -> str:
    return json.dumps(
        [
            {
                "id": i,
                "name": name,
                "email": f"{name.lower()}@example.com",
                "city": city,
                "active": is_active,
            }
            for i, name, city, is_active in people
        ]
    )
