"""What an answer must look like: response_format or structured_outputs, within a budget."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from plait.decoders.constrained.spec import ConstraintSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.api.interfaces import PoolLike
from plait.server.api.json_body import parse_json
from plait.server.api.schemas.chat import ChatRequest, JsonSchemaFormat, TextFormat
from plait.server.api.schemas.common import GenerationRequest, StructuredOutputs
from plait.server.errors import BadRequest, DeadlineExceeded
from plait.server.settings import LimitSettings
from plait.server.wire.messages import CompiledConstraint

# Of a schema that is given as a string; the compile service has the real limits.
SCHEMA_LIMITS = LimitSettings(max_json_depth=256)


@dataclass(frozen=True, slots=True)
class ConstraintContext:
    """What a constraint has to fit into."""

    budget: int  # tokens of the answer
    prefill: str | None  # what the text begins with; None: nobody can tell
    sampling: SamplingParams
    deadline: float | None  # of the request, as time.monotonic()


async def compile_constraint(
    pool: PoolLike, model: str, request: GenerationRequest, frame: ConstraintContext, tenant: str
) -> CompiledConstraint | None:
    """Return the request's constraint, ready for the model's workers; None if any text will do.

    Raises:
        BadRequest: it is contradictory, can't be enforced, or can't be met within the budget.
        Overloaded, Unavailable: it may be compiled later; those of one tenant wait for each other.
        DeadlineExceeded: the request's own deadline came first.
    """
    spec, param = constraint_spec(request)
    if spec is None:
        return None
    for name in ("ignore_eos", "min_tokens"):
        if getattr(request, name):
            raise BadRequest(f"{name} and {param} exclude each other.", param=name)
    try:
        async with asyncio.timeout(_left_s(frame.deadline)):
            compiled = await pool.compile(model, spec, tenant)
    except TimeoutError:
        raise DeadlineExceeded("The request's deadline has passed.") from None
    except BadRequest as error:
        message = f"{param}: {error.message}"
        raise BadRequest(message, param=param, code=error.code) from None
    if frame.prefill is None:
        raise BadRequest(
            "The model's chat template changes the last message, so no form can begin with it: "
            f"continue_final_message and {param} exclude each other here.",
            param="continue_final_message",
        )
    if compiled.min_tokens > frame.budget and not frame.prefill:  # else the worker can tell
        raise BadRequest(
            f"The shortest answer that {param} allows has {compiled.min_tokens} tokens, but "
            f"max_tokens is {frame.budget}.",
            param=param,
            code="constraint_exceeds_max_tokens",
        )
    return msgspec.structs.replace(
        compiled,
        prefill=frame.prefill,
        only=list(frame.sampling.allowed_token_ids),
        without=[word[0] for word in frame.sampling.bad_words if len(word) == 1],
    )


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def constraint_spec(request: GenerationRequest) -> tuple[ConstraintSpec | None, str]:
    """Return the constraint and the field that holds it, by its whole path."""
    chosen = request.structured_outputs
    answer_format = request.response_format if isinstance(request, ChatRequest) else None
    if answer_format is None or isinstance(answer_format, TextFormat):
        return _structured(chosen) if chosen else (None, "structured_outputs")
    if chosen is not None:
        raise BadRequest(
            "response_format and structured_outputs exclude each other.", param="structured_outputs"
        )
    if not isinstance(answer_format, JsonSchemaFormat):
        return ConstraintSpec("json_object", ""), "response_format"
    schema = answer_format.json_schema
    spec = ConstraintSpec("json_schema", _write(schema.schema_ or {}), bool(schema.strict))
    return spec, "response_format.json_schema.schema"


def _structured(outputs: StructuredOutputs) -> tuple[ConstraintSpec, str]:
    given = list(outputs.model_dump(by_alias=True, exclude_none=True))
    if len(given) != 1:
        raise BadRequest(
            "structured_outputs needs exactly one of json, regex, choice and grammar.",
            param="structured_outputs",
        )
    return _structured_spec(outputs), f"structured_outputs.{given[0]}"


def _structured_spec(outputs: StructuredOutputs) -> ConstraintSpec:
    if outputs.json_ is not None:
        return ConstraintSpec("json_schema", _write(_schema(outputs.json_)))
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
