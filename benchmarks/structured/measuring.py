"""Requests with schemas to one server, and what each answer is worth."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import httpx
import jsonschema_rs
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.client import Answer, ServerFault
from benchmarks.maskbench import Case
from benchmarks.rows import Bench
from benchmarks.structured.answers import Answers, Plan
from benchmarks.structured.coverage import STOP, Attempt, Outcome, Timing

PROMPT = "Answer in JSON with an example."
COMPILE_METRIC = "plait_grammar_compile_seconds"
# What servers say of a schema that they do not take; anything else is a failure.
REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
REASON_CHARS = 200
UNCONSTRAINED_TOKENS = 4  # of the request that a schema's first token is compared with


class Unsendable(ValueError):
    """The schema can't be asked for, or no validator can judge its answers."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema, and what judges its answers."""

    name: str
    content: dict[str, Any]
    validator: jsonschema_rs.Validator

    def fault(self, text: str) -> str:
        """Return the keyword that refuses a text, formats included; none: the text is valid."""
        try:
            value = json.loads(text, parse_float=_number, parse_constant=_refuse_constant)
        except ValueError:
            return "not JSON"
        error = next(self.validator.iter_errors(value), None)
        if error is None:
            return ""
        path = [step for step in error.schema_path if isinstance(step, str)]
        return path[-1] if path else "false schema"


def _number(text: str) -> Decimal:
    """Return a number; an exponent that Decimal does not take becomes another great one."""
    try:
        return Decimal(text)
    except InvalidOperation:
        mantissa, _, exponent = text.lower().partition("e")
        return Decimal(f"{mantissa}e{exponent[: exponent.startswith(('-', '+'))]}99999999999")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def make_schema(case: Case) -> Schema:
    """Return a schema with its validator.

    Raises:
        Unsendable: it is no object, has no valid instance, or the validator does not take it.
    """
    if not isinstance(case.schema, dict):
        raise Unsendable("the schema is no object")
    if not any(test["valid"] for test in case.tests):
        raise Unsendable("no valid instance is known")
    try:
        validator = jsonschema_rs.validator_for(case.schema, validate_formats=True, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        raise Unsendable("the validator does not take it") from None
    return Schema(case.name, case.schema, validator)


def draw_schemas(cases: Iterable[Case], count: int, seed: int) -> tuple[list[Schema], list[str]]:
    """Return that many schemas in random order, and why others were passed over on the way."""
    rows, passed_over = [*cases], list[str]()
    random.Random(seed).shuffle(rows)
    found: list[Schema] = []
    for case in rows:
        if len(found) == count:
            break
        try:
            found.append(make_schema(case))
        except Unsendable as reason:
            passed_over.append(str(reason))
    return found, passed_over


Ask = Callable[[Bench, Schema, int, Plan], Awaitable[Attempt]]


async def measure(
    bench: Bench,
    schemas: Sequence[Schema],
    plan: Plan,
    answers: Answers,
) -> list[Attempt]:
    """Ask for each schema, then again for those that were accepted, several at once.

    A request's prompt and seed depend on its number and the plan's seed: servers get the same.
    Those whose answers are known are not sent again.

    Raises:
        ServerFault, httpx.HTTPError, TimeoutError: it does not answer without a schema either.
    """
    await _unconstrained_ttft(bench, len(schemas) + plan.outputs, plan)  # a first one may be slow
    attempts = list[Attempt]()
    first = _first if plan.is_alone else partial(_attempt, is_first=True)

    async def stream(requests: Iterator[tuple[int, Schema]], ask: Ask) -> None:
        for number, schema in requests:
            found = answers.find(number, schema.name)
            if found is None:
                found = await ask(bench, schema, number, plan)
                answers.add(found)
            attempts.append(found)

    new, streams = iter(enumerate(schemas)), 1 if plan.is_alone else plan.streams
    await asyncio.gather(*(stream(new, first) for _ in range(streams)))
    accepted = sorted(a.index for a in attempts if a.outcome == "answered")
    numbers = range(len(schemas), len(schemas) + plan.outputs - len(accepted))
    if accepted:
        again = ((i, schemas[accepted[i % len(accepted)]]) for i in numbers)
        await asyncio.gather(*(stream(again, _attempt) for _ in range(plan.streams)))
    return sorted(attempts, key=lambda attempt: attempt.index)


async def _first(bench: Bench, schema: Schema, number: int, plan: Plan) -> Attempt:
    """Ask for a schema that is new to the server, and find out how long it took to compile.

    The server's metrics tell that, or else the time to the first token, less that of a request
    without a schema which was sent just before.
    """
    before = await told_compile_ms(bench.client)
    plain = 0.0 if before is not None else await _unconstrained_ttft(bench, number, plan)
    attempt = await _attempt(bench, schema, number, plan, is_first=True)
    if attempt.timing is None:
        return attempt
    after = None if before is None else await told_compile_ms(bench.client)
    known = attempt.timing.ttft - plain if before is None or after is None else after - before
    return replace(attempt, timing=replace(attempt.timing, compile=known))


async def told_compile_ms(client: httpx.AsyncClient) -> float | None:
    """Return how long the server has compiled so far, by its metrics; None: they say nothing."""
    try:
        response = await client.get("/metrics")
        families = [*text_string_to_metric_families(response.text)]
    except (httpx.HTTPError, ValueError):
        return None
    samples = [s for f in families if f.name == COMPILE_METRIC for s in f.samples]
    is_told = any(family.name == COMPILE_METRIC for family in families)
    return 1e3 * sum(s.value for s in samples if s.name.endswith("_sum")) if is_told else None


async def _unconstrained_ttft(bench: Bench, number: int, plan: Plan) -> float:
    answer = await _ask(bench, -1 - number, plan, UNCONSTRAINED_TOKENS)
    return answer.ttft_ms


async def _attempt(
    bench: Bench, schema: Schema, number: int, plan: Plan, *, is_first: bool = False
) -> Attempt:
    """Send a request with a schema and judge its answer."""
    attempt = Attempt(number, schema.name, is_first, "answered")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema.content}}
    try:
        answer = await _ask(bench, number, plan, plan.max_tokens, response_format=form)
    except ServerFault as error:
        outcome: Outcome = "refused" if error.status in REFUSED else "failed"
        return replace(attempt, outcome=outcome, reason=str(error)[:REASON_CHARS])
    except (httpx.HTTPError, TimeoutError) as error:
        return replace(attempt, outcome="failed", reason=repr(error)[:REASON_CHARS])
    fault = schema.fault(answer.text)
    return replace(
        attempt,
        reason=f"invalid: {fault}" if fault and answer.finish_reason == STOP else "",
        finish_reason=answer.finish_reason,
        is_valid=not fault,
        tokens=answer.tokens,
        timing=Timing(answer.ttft_ms, 1e3 / answer.decode_rate if answer.decode_rate else None),
        text=answer.text,
    )


async def _ask(bench: Bench, number: int, plan: Plan, max_tokens: int, **extra: Any) -> Answer:
    """Send a request; its prompt begins with a number that no other one has."""
    drawn = {"temperature": plan.temperature, "seed": (plan.seed + number) % 2**31}
    own = bench.at(f"structured {plan.seed}", number, drawn)
    async with asyncio.timeout(plan.timeout_s):
        return await own.ask(own.prompt(PROMPT), max_tokens, **extra)
