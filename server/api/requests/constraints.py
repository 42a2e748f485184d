"""Structured output: response_format or structured_outputs, compiled and checked."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from plait.decoders.constrained.schema.ledger import enforcement
from plait.decoders.constrained.spec import PRETTY, ConstraintSpec, JsonStyle
from plait.decoders.contract.decoding import DecodingSpec
from plait.decoders.contract.registry import from_spec
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.scorers.form import FormOptions
from plait.server.api.interfaces import PoolLike
from plait.server.api.json_body import parse_json
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.api.schemas.response_format import (
    JsonSchemaFormat,
    StructuredOutputs,
    TextFormat,
)
from plait.server.errors import BadRequest, DeadlineExceeded
from plait.server.settings import LimitSettings
from plait.server.wire.messages import CompiledConstraint

# Of a schema in a string; the compile service applies the real limits.
SCHEMA_LIMITS = LimitSettings(max_json_depth=256)
ANY_SPELLING = JsonStyle("any", objects="open", key_order="any", untyped="any", numbers="any")


@dataclass(frozen=True, slots=True)
class ConstraintContext:
    """What else of a request a constraint depends on."""

    max_tokens: int  # of the output
    prefill: str | None  # text that the output continues; None: the chat template changed it
    sampling: SamplingParams
    deadline: float | None  # of the request, as time.monotonic()


async def compile_constraint(
    pool: PoolLike, model: str, request: GenerationRequest, bounds: ConstraintContext, tenant: str
) -> CompiledConstraint | None:
    """Return the request's compiled constraint; None if it has none.

    Raises:
        BadRequest: it contradicts itself, can't be enforced, or needs more than max_tokens.
        Overloaded, Unavailable: the compile service has no capacity now.
        DeadlineExceeded: the request's deadline passed first.
    """
    spec, param = constraint_spec(request)
    if spec is None:
        return None
    for name in ("ignore_eos", "min_tokens"):
        if getattr(request, name):
            raise BadRequest(f"{name} and {param} exclude each other.", param=name)
    compiled = await _compile(pool, model, spec, (bounds.deadline, param, tenant))
    if bounds.prefill is None:
        raise BadRequest(
            "The model's chat template changes the last message, so no form can begin with it: "
            f"continue_final_message and {param} exclude each other here.",
            param="continue_final_message",
        )
    if compiled.min_tokens > bounds.max_tokens and not bounds.prefill:  # else only the worker knows
        raise BadRequest(
            f"The shortest answer that {param} allows has {compiled.min_tokens} tokens, but "
            f"max_tokens is {bounds.max_tokens}.",
            param=param,
            code="constraint_exceeds_max_tokens",
        )
    return msgspec.structs.replace(
        compiled,
        prefill=bounds.prefill,
        allowed_token_ids=list(bounds.sampling.allowed_token_ids),
        banned_token_ids=[word[0] for word in bounds.sampling.bad_words if len(word) == 1],
    )


def enforcement_of(
    request: GenerationRequest, compiled: CompiledConstraint | None
) -> list[dict[str, str]]:
    """Return what enforces each keyword of the request's JSON schema; [] if it has none."""
    spec = constraint_spec(request)[0]
    if compiled is None or spec is None or spec.kind != "json_schema":
        return []
    return enforcement(json.loads(spec.text), compiled.checked, compiled.ignored)


async def compile_forms(
    pool: PoolLike, model: str, decoding: DecodingSpec, bounds: ConstraintContext, tenant: str
) -> dict[int, CompiledConstraint]:
    """Return the compiled forms of the request's scorers that judge one, by their places.

    Errors as of compile_constraint.
    """
    found: dict[int, CompiledConstraint] = {}
    for i, each in enumerate(decoding.scorers):
        options = from_spec("scorer", each).options
        if isinstance(options, FormOptions):
            kind, text = options.form
            spec = ConstraintSpec(kind, text, style=ANY_SPELLING)
            param = "decoding.scorer" if len(decoding.scorers) == 1 else f"decoding.scorer.{i}"
            found[i] = await _compile(pool, model, spec, (bounds.deadline, param, tenant))
    return found


async def _compile(
    pool: PoolLike, model: str, spec: ConstraintSpec, asked: tuple[float | None, str, str]
) -> CompiledConstraint:
    """Compile for a request: its deadline, the field that holds the form, and its tenant."""
    deadline, param, tenant = asked
    try:
        async with asyncio.timeout(_left_s(deadline)):
            return await pool.compile(model, spec, tenant)
    except TimeoutError:
        raise DeadlineExceeded("The request's deadline has passed.") from None
    except BadRequest as error:
        message = f"{param}: {error.message}"
        raise BadRequest(message, param=param, code=error.code) from None


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def constraint_spec(request: GenerationRequest) -> tuple[ConstraintSpec | None, str]:
    """Return the constraint, if there is one, and the path of the field that holds it."""
    chosen = request.structured_outputs
    output_format = request.output_format
    if output_format is None or isinstance(output_format, TextFormat):
        return _structured(chosen) if chosen else (None, "structured_outputs")
    if chosen is not None and (given := _given(chosen)):
        raise BadRequest(
            f"response_format and structured_outputs.{given[0]} exclude each other.",
            param="structured_outputs",
        )
    style = _style(chosen)
    if not isinstance(output_format, JsonSchemaFormat):
        return ConstraintSpec("json_object", "", style=style), "response_format"
    schema = output_format.json_schema
    spec = ConstraintSpec("json_schema", _write(schema.schema_ or {}), bool(schema.strict), style)
    return spec, "response_format.json_schema.schema"


def _given(outputs: StructuredOutputs) -> list[str]:
    return list(outputs.model_dump(by_alias=True, exclude_none=True, exclude={"options"}))


def _style(outputs: StructuredOutputs | None) -> JsonStyle:
    options = None if outputs is None else outputs.options
    return JsonStyle(**options.model_dump(exclude_none=True)) if options else PRETTY


def _structured(outputs: StructuredOutputs) -> tuple[ConstraintSpec, str]:
    given = _given(outputs)
    if len(given) != 1:
        raise BadRequest(
            "structured_outputs needs exactly one of json, regex, choice and grammar"
            + (", or response_format beside its options." if outputs.options else "."),
            param="structured_outputs",
        )
    if outputs.options is not None and outputs.json_ is None:
        raise BadRequest(
            f"structured_outputs.options are about JSON, but {given[0]} is given.",
            param="structured_outputs.options",
        )
    return _structured_spec(outputs), f"structured_outputs.{given[0]}"


def _structured_spec(outputs: StructuredOutputs) -> ConstraintSpec:
    if outputs.json_ is not None:
        text = _write(_schema(outputs.json_))
        return ConstraintSpec("json_schema", text, style=_style(outputs))
    if outputs.choice is not None:
        return ConstraintSpec("choice", _write(outputs.choice))
    if outputs.regex is not None:
        return ConstraintSpec("regex", outputs.regex)
    return ConstraintSpec("grammar", outputs.grammar or "")


def _schema(schema: dict[str, Any] | str) -> Any:
    if isinstance(schema, dict):
        return schema
    try:
        return parse_json(schema.encode(), SCHEMA_LIMITS)
    except BadRequest as error:
        reason = error.message.removeprefix("The body is ")
        message = f"structured_outputs.json: the text is {reason}"
        raise BadRequest(message, param="structured_outputs.json") from None


def _write(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
