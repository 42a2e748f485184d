"""What speculation is measured on: copying, editing, objects under a schema, open chat."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client import Answer
from benchmarks.prompts import AS_PERSON, NAMES, Message, records
from benchmarks.rows import Bench

Call = tuple[list[Message], int, dict[str, Any]]  # messages, max_tokens, fields
CHAT_TOKENS = 128
COPY_TOKENS = 220
# A form as programs have them: long keys and few values, so most of an answer is known beforehand.
FORM: dict[str, Any] = {
    "customer_satisfaction_level": {
        "enum": ["very_satisfied", "satisfied", "neutral", "dissatisfied", "very_dissatisfied"]
    },
    "preferred_contact_method": {"enum": ["email_address", "telephone_call", "postal_service"]},
    "has_existing_customer_account": {"type": "boolean"},
    "number_of_previous_orders": {"type": "integer", "minimum": 0, "maximum": 99},
    "product_category": {"enum": ["kitchen_appliances", "garden_furniture", "office_supplies"]},
    "refund_has_been_requested": {"type": "boolean"},
    "estimated_delivery_window": {"enum": ["within_one_week", "within_one_month", "unknown"]},
    "requires_manual_review": {"type": "boolean"},
}
AS_FORM = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "form",
            "schema": {
                "type": "object",
                "properties": FORM,
                "required": [*FORM],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    "temperature": 0.7,
}
BUSY = ("plain", "auto")  # where rows are dear, what the server itself chooses
SUBJECTS = (
    "Write a long story about a lighthouse keeper.",
    "Explain how bread is made, step by step.",
    "What are the causes of the seasons?",
    "Describe a walk through an old city at night.",
    "Give advice to somebody who begins to learn the piano.",
    "Why do ships float although they are made of steel?",
    "Tell me about the life of bees.",
    "How does a bicycle stay upright?",
)
SOURCE = records(4, 8)  # which the model copies to the letter in the first repetitions
EDITED = SOURCE.replace("Delhi", "Lagos").replace("true", "false", 1).replace("Fatma", "Farah")


@dataclass(frozen=True, slots=True)
class Task:
    """Requests that are sent at once, and what may be expected of their answers."""

    title: str
    calls: Callable[[Bench, int], list[Call]]  # of a repetition
    prediction: str = ""
    wrong: str = field(default="The quick brown fox jumps over the lazy dog. " * 12)
    is_constrained: bool = False
    only: tuple[str, ...] = ()  # settings that are of interest; empty: all
    at_once: bool = False  # or one request after the other

    async def run(
        self, bench: Bench, calls: Sequence[Call], extra: dict[str, Any]
    ) -> tuple[float, list[Answer]]:
        """Return tokens per second, of one stream's decoding or of all together, and the texts."""
        if self.at_once:
            return await bench.batch([_ask(bench, call, extra) for call in calls])
        answers = [await _ask(bench, call, extra) for call in calls]
        tokens = sum(answer.tokens_after_first for answer in answers)
        return tokens / sum(answer.last - answer.first for answer in answers), answers


def _ask(bench: Bench, call: Call, extra: dict[str, Any]) -> Awaitable[Answer]:
    messages, max_tokens, fields = call
    return bench.ask(messages, max_tokens, **fields, **extra)


def _copying(bench: Bench, rep: int) -> list[Call]:
    command = f"[{rep + 10}] Repeat this JSON exactly:\n"
    messages = [
        {"role": "user", "content": command + records(0, 3)},
        {"role": "assistant", "content": records(0, 3)},
        {"role": "user", "content": command + SOURCE},
    ]
    return [(messages, COPY_TOKENS, {})]


def _objects(count: int) -> Callable[[Bench, int], list[Call]]:
    def calls(bench: Bench, rep: int) -> list[Call]:
        return [_object(count * (rep + 1) + i) for i in range(count)]

    return calls


def _object(seed: int) -> Call:
    text = (
        f"[{seed}] Make up a person called {NAMES[seed % len(NAMES)]} and describe them as JSON "
        "with name, age, email, city, is_student and hobbies."
    )
    return [{"role": "user", "content": text}], 200, AS_PERSON | {"seed": seed}


def _forms(bench: Bench, rep: int) -> list[Call]:
    return [_form(3 * (rep + 1) + i) for i in range(3)]


def _form(seed: int) -> Call:
    text = (
        f"[{seed}] {NAMES[seed % len(NAMES)]} writes: the chairs for our garden came after three "
        "weeks, two of them broken. I want my money back; please call me. Fill in this form: "
        + json.dumps(FORM)
    )
    return [{"role": "user", "content": text}], 250, AS_FORM | {"seed": seed}


def _chat(count: int) -> Callable[[Bench, int], list[Call]]:
    def calls(bench: Bench, rep: int) -> list[Call]:
        return [_talk(count * (rep + 1) + i) for i in range(count)]

    return calls


def _talk(number: int) -> Call:
    text = f"[{number}] {SUBJECTS[number % len(SUBJECTS)]}"
    fields = {"temperature": 0.7, "seed": number, "ignore_eos": True}
    return [{"role": "user", "content": text}], CHAT_TOKENS, fields


TASKS = {
    "copy": Task("copy JSON, 1 stream", _copying, prediction=SOURCE),
    "edit": Task(
        "copy JSON, predicted with three changes",
        _copying,
        prediction=EDITED,
        only=("plain", "auto", "prediction"),
    ),
    "json1": Task("JSON schema, 1 stream", _objects(4), is_constrained=True),
    "form": Task("JSON schema with long keys, 1 stream", _forms, is_constrained=True),
    "json8": Task(
        "JSON schema, 8 streams", _objects(8), is_constrained=True, only=BUSY, at_once=True
    ),
    "chat1": Task("open chat, 1 stream", _chat(2)),
    "chat8": Task("open chat, 8 streams", _chat(8), only=BUSY, at_once=True),
    "chat32": Task("open chat, 32 streams", _chat(32), only=BUSY, at_once=True),
}
