"""The rows that are compared, and the gate that a server must pass before it is measured.

A row is measured once a repetition. Every repetition has prompts and seeds of its own, which depend
on the row and the repetition alone, so that all servers answer the same ones. Each prompt begins
with a number that no other has: no prefix cache can help. Texts are drawn at temperature 0.8, for
greedy ones soon repeat themselves, and drafts of a loop are nearly always right; they are as long
as `max_tokens` says, whatever the text, but for answers under a schema, which end by themselves.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import random
import statistics
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import jsonschema_rs

from benchmarks import prompts
from benchmarks.client import Answer, ask
from benchmarks.prompts import AS_PERSON, PERSON, Message

PROMPT_TOKENS = 511
TEMPERATURE = 0.8
COPIED_TOKENS = 150  # fewer than the text that is copied has
# What the smallest model that is compared knows, and how one sees that it does.
QUESTIONS = {
    "What is 2 + 2?": "4",
    "How many days are in a week?": "7",
    "Name the first month of the year.": "January",
}


class RedGate(RuntimeError):
    """The server's answers are wrong, so how fast they come says nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition of a row on one server."""

    unit: str
    value: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """A server under test, and the source of its prompts."""

    client: httpx.AsyncClient
    model: str
    reps: int = 5
    rng: random.Random = field(default_factory=lambda: random.Random(511))
    fields: Mapping[str, Any] = field(default_factory=dict)  # of every request
    words: dict[str, int] = field(default_factory=dict)  # of a prompt of so many tokens, by model
    scale: float = 1.0  # of the length of each row

    def at(self, row: str, rep: int, fields: Mapping[str, Any], scale: float = 1.0) -> Bench:
        """Return the bench of one repetition of a row, whose prompts depend on these two alone."""
        return replace(self, rng=random.Random(f"{row} {rep}"), fields=fields, scale=scale)

    def size(self, count: int) -> int:
        """Return how many of `count` tokens or answers this bench asks for."""
        return max(1, round(count * self.scale))

    def prompt(self, text: str) -> list[Message]:
        """Return a user's message that no prompt before it shares a prefix with."""
        return [{"role": "user", "content": f"[{self.rng.randrange(10**8, 10**9)}] {text}"}]

    def ask(self, messages: list[Message], max_tokens: int, **extra: Any) -> Awaitable[Answer]:
        """Stream one answer, greedy unless `extra` says otherwise."""
        return ask(self.client, self.model, messages, max_tokens, **{**self.fields, **extra})

    def decode(self, messages: list[Message], tokens: int) -> Awaitable[Answer]:
        """Stream exactly so many tokens of a text that is drawn, whatever it says."""
        drawn = {"temperature": TEMPERATURE, "seed": self.rng.randrange(2**31)}
        return self.ask(messages, tokens, ignore_eos=True, **drawn)

    async def batch(self, calls: Sequence[Awaitable[Answer]]) -> tuple[float, list[Answer]]:
        """Run answers at the same time; return tokens per second of all together, and them."""
        begun = time.perf_counter()
        answers = await asyncio.gather(*calls)
        return sum(a.tokens for a in answers) / (time.perf_counter() - begun), answers


async def check(bench: Bench) -> Sample:
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
    return Sample("right", len(QUESTIONS) - len(wrong), {"of": len(QUESTIONS)})


def _need_tokens(answers: Sequence[Answer], want: int) -> None:
    """Raise RedGate where an answer is longer or shorter than it was to be."""
    if odd := sorted({a.tokens for a in answers} - {want}):
        raise RedGate(f"answers of {want} tokens were asked for, some have {odd}")


async def single(bench: Bench) -> Sample:
    """Decode 256 tokens alone."""
    tokens = bench.size(256)
    answer = await bench.decode(bench.prompt(prompts.story(bench.rng)), tokens)
    _need_tokens([answer], tokens)
    return Sample("tok/s", answer.decode_rate, {"ttft_ms": round(answer.ttft_ms, 1)})


async def ttft(bench: Bench) -> Sample:
    """Read a prompt of 511 tokens and answer with the first one; the median of three.

    The prompt is the system message: before another one, all would share the model's own.
    """
    if bench.model not in bench.words:
        words = PROMPT_TOKENS - 60
        probe = await bench.decode(_long(bench, words), 1)
        bench.words[bench.model] = words + PROMPT_TOKENS - probe.prompt_tokens
    words = bench.words[bench.model]
    answers = [await bench.decode(_long(bench, words), 4) for _ in range(bench.size(3))]
    lengths = sorted({a.prompt_tokens for a in answers})
    median = statistics.median(a.ttft_ms for a in answers)
    return Sample("ms", median, {"prompt_tokens": lengths})


def _long(bench: Bench, words: int) -> list[Message]:
    text = bench.prompt(prompts.filler(bench.rng, words))[0]["content"]
    return [{"role": "system", "content": text}, {"role": "user", "content": "Go on."}]


async def streams(bench: Bench, count: int) -> Sample:
    """Decode 128 tokens in each of `count` streams at once."""
    asked = [bench.prompt(prompts.question(bench.rng)) for _ in range(count)]
    tokens = bench.size(128)
    rate, answers = await bench.batch([bench.decode(messages, tokens) for messages in asked])
    _need_tokens(answers, tokens)
    median_ttft = statistics.median(a.ttft_ms for a in answers)
    return Sample("tok/s", rate, {"ttft_ms": round(median_ttft, 1)})


async def eight_streams(bench: Bench) -> Sample:
    """Decode in 8 streams."""
    return await streams(bench, 8)


async def many_streams(bench: Bench) -> Sample:
    """Decode in 32 streams."""
    return await streams(bench, 32)


async def json_single(bench: Bench) -> Sample:
    """Fill a schema at temperature 0.7, four times, one request after the other."""
    answers = [await _person(bench) for _ in range(bench.size(4))]
    span = sum(a.last - a.first for a in answers)
    return Sample("tok/s", sum(a.tokens_after_first for a in answers) / span, _validity(answers))


async def json_streams(bench: Bench, count: int = 8) -> Sample:
    """Fill a schema at temperature 0.7 in `count` streams, four times as often.

    A stream whose answer has ended takes the next one that nobody has begun. Lengths differ: were
    there but a few, the longest would end alone, and the row would measure that one.
    """
    todo = iter([_person(bench) for _ in range(count * bench.size(4))])

    async def stream() -> list[Answer]:
        return [await call for call in todo]

    begun = time.perf_counter()
    streams = await asyncio.gather(*(stream() for _ in range(count)))
    answers = [answer for each in streams for answer in each]
    rate = sum(a.tokens for a in answers) / (time.perf_counter() - begun)
    return Sample("tok/s", rate, _validity(answers))


def _person(bench: Bench) -> Awaitable[Answer]:
    seed = bench.rng.randrange(2**31)
    return bench.ask(bench.prompt(prompts.person(bench.rng)), 200, **AS_PERSON, seed=seed)


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


async def copy(bench: Bench, *, is_predicted: bool = False) -> Sample:
    """Repeat a JSON text greedily after an example of it; nearly every token can be guessed.

    is_predicted: the request's `prediction` holds the text as well.
    """
    messages, source = prompts.copying(bench.rng)
    prediction = {"prediction": {"type": "content", "content": source}} if is_predicted else {}
    tokens = bench.size(COPIED_TOKENS)
    answer = await bench.ask(messages, tokens, ignore_eos=True, **prediction)
    _need_tokens([answer], tokens)
    text = answer.text.strip()
    matcher = difflib.SequenceMatcher(None, source[: len(text)], text, autojunk=False)
    return Sample("tok/s", answer.decode_rate, {"similarity": round(matcher.ratio(), 3)})
