"""The rows that are compared, and the gate that a server must pass before it is measured.

Every prompt begins with a number of its own, so that no prefix cache can help; every server gets
the same prompts in the same order. Each row is the median of its repetitions.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import random
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema_rs

from benchmarks.client import Answer, ask

PROMPT_TOKENS = 511
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
AS_PERSON = {
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

# What the smallest model that is compared knows, and how one sees that it does.
QUESTIONS = {
    "What is 2 + 2?": "4",
    "How many days are in a week?": "7",
    "Name the first month of the year.": "January",
}

Message = dict[str, str]


class RedGate(RuntimeError):
    """The server's answers are wrong, so how fast they come says nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of one server."""

    unit: str
    samples: Sequence[float]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The number that is compared."""
        return statistics.median(self.samples)


@dataclass(slots=True)
class Bench:
    """A server under test, and the source of its prompts."""

    client: httpx.AsyncClient
    model: str
    reps: int = 5
    rng: random.Random = field(default_factory=lambda: random.Random(511))

    def prompt(self, text: str) -> list[Message]:
        """Return a user's message that no prompt before it shares a prefix with."""
        return [{"role": "user", "content": f"[{self.rng.randrange(10**8, 10**9)}] {text}"}]

    def ask(self, messages: list[Message], max_tokens: int, **extra: Any) -> Awaitable[Answer]:
        """Stream one answer, greedy unless `extra` says otherwise."""
        return ask(self.client, self.model, messages, max_tokens, **extra)

    def decode(self, messages: list[Message], tokens: int) -> Awaitable[Answer]:
        """Stream exactly so many tokens, whatever the text."""
        return self.ask(messages, tokens, ignore_eos=True)

    async def batch(self, calls: Sequence[Awaitable[Answer]]) -> tuple[float, list[Answer]]:
        """Run answers at the same time; return tokens per second of all together, and them."""
        begun = time.perf_counter()
        answers = await asyncio.gather(*calls)
        return sum(a.tokens for a in answers) / (time.perf_counter() - begun), answers


async def check(bench: Bench) -> Measured:
    """Pass the gate, and return how many answers were right.

    Greedy answers must be reproducible and not all wrong, and an object must begin as one. A file
    quantised more coarsely may miss some: the table says so beside its speed.

    Raises:
        RedGate: saying what came instead.
    """
    wrong = []
    for question, want in QUESTIONS.items():
        messages = [{"role": "user", "content": question}]
        answers = [await bench.ask(messages, 16) for _ in range(2)]
        if answers[0].text != answers[1].text:
            raise RedGate(f"greedy, yet it says {answers[0].text!r} and {answers[1].text!r}")
        if want not in answers[0].text:
            wrong.append(f"asked {question!r}, it says {answers[0].text!r}")
    if len(wrong) == len(QUESTIONS):
        raise RedGate("; ".join(wrong))
    answer = await bench.ask(bench.prompt("Describe a person."), 200, **AS_PERSON, seed=1)
    if not answer.text.lstrip().startswith("{"):
        raise RedGate(f"asked for an object, it says {answer.text[:80]!r}")
    return Measured("right", [len(QUESTIONS) - len(wrong)], {"of": len(QUESTIONS)})


async def single(bench: Bench) -> Measured:
    """Decode 256 tokens alone."""
    text = "Write a long story about a lighthouse keeper."
    answers = [await bench.decode(bench.prompt(text), 256) for _ in range(bench.reps)]
    ttft = statistics.median(a.ttft_ms for a in answers)
    return Measured("tok/s", [a.decode_rate for a in answers], {"ttft_ms": round(ttft, 1)})


async def ttft(bench: Bench) -> Measured:
    """Read a prompt of 511 tokens and answer with the first one."""
    words = PROMPT_TOKENS - 60
    probe = await bench.decode(_long(bench, words), 1)
    words += PROMPT_TOKENS - probe.prompt_tokens
    answers = [await bench.decode(_long(bench, words), 4) for _ in range(bench.reps)]
    lengths = sorted({a.prompt_tokens for a in answers})
    return Measured("ms", [a.ttft_ms for a in answers], {"prompt_tokens": lengths})


def _long(bench: Bench, words: int) -> list[Message]:
    return bench.prompt(" ".join(bench.rng.choice(WORDS) for _ in range(words)))


async def streams(bench: Bench, count: int) -> Measured:
    """Decode 128 tokens in each of `count` streams at once."""
    rates, answers = [], []
    for _ in range(bench.reps):
        rate, batch = await bench.batch(
            [bench.decode(bench.prompt(f"Why is {i} odd?"), 128) for i in range(count)]
        )
        rates.append(rate)
        answers += batch
    median_ttft = statistics.median(a.ttft_ms for a in answers)
    return Measured("tok/s", rates, {"ttft_ms": round(median_ttft, 1)})


async def json_single(bench: Bench) -> Measured:
    """Fill a schema at temperature 0.7, one request after the other."""
    answers = [await _person(bench, seed) for seed in range(2 * bench.reps)]
    return Measured("tok/s", [a.decode_rate for a in answers], _validity(answers))


async def json_streams(bench: Bench, count: int = 8) -> Measured:
    """Fill a schema at temperature 0.7 in `count` streams at once."""
    rates, answers = [], []
    for rep in range(bench.reps):
        calls = [_person(bench, 1000 + count * rep + i) for i in range(count)]
        rate, batch = await bench.batch(calls)
        rates.append(rate)
        answers += batch
    return Measured("tok/s", rates, _validity(answers))


async def _person(bench: Bench, seed: int) -> Answer:
    text = (
        f"Make up a person called {NAMES[seed % len(NAMES)]} and describe them as JSON with name, "
        "age, email, city, is_student and hobbies."
    )
    return await bench.ask(bench.prompt(text), 200, **AS_PERSON, seed=seed)


def _validity(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "valid": sum(_is_person(a.text) for a in answers),
        "of": len(answers),
        "tokens": statistics.median(a.tokens for a in answers),
    }


def _is_person(text: str) -> bool:
    try:
        person = json.loads(text)
    except json.JSONDecodeError:
        return False
    return jsonschema_rs.is_valid(PERSON, person)


async def copy(bench: Bench) -> Measured:
    """Repeat a JSON text after an example of it; nearly every token can be guessed."""
    command, source = "Repeat this JSON exactly:\n", records(3, 8)
    messages = [
        {"role": "user", "content": command + records(0, 3)},
        {"role": "assistant", "content": records(0, 3)},
        {"role": "user", "content": command + source},
    ]
    answers = [await bench.ask(messages, 220) for _ in range(bench.reps)]
    matcher = difflib.SequenceMatcher(None, source, answers[0].text.strip(), autojunk=False)
    notes = {"tokens": answers[0].tokens, "similarity": round(matcher.ratio(), 3)}
    return Measured("tok/s", [a.decode_rate for a in answers], notes)


def records(start: int, stop: int) -> str:
    """Return JSON that says nothing twice in the same words."""
    return json.dumps(
        [
            {
                "id": i,
                "name": NAMES[i],
                "email": f"{NAMES[i].lower()}@example.com",
                "city": CITIES[i],
                "active": i % 2 == 0,
            }
            for i in range(start, stop)
        ]
    )


async def eight_streams(bench: Bench) -> Measured:
    """Decode in 8 streams."""
    return await streams(bench, 8)


async def many_streams(bench: Bench) -> Measured:
    """Decode in 32 streams."""
    return await streams(bench, 32)


# Key -> (title, measure). Start-up is measured where servers are started.
ROWS: dict[str, tuple[str, Callable[[Bench], Awaitable[Measured]]]] = {
    "single": ("1 stream, decode", single),
    "ttft": (f"TTFT, {PROMPT_TOKENS}-token prompt", ttft),
    "c8": ("8 streams", eight_streams),
    "c32": ("32 streams", many_streams),
    "json": ("json_schema, 1 stream, decode", json_single),
    "json8": ("json_schema, 8 streams", json_streams),
    "copy": ("copy a JSON text, decode", copy),
}
