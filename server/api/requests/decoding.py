"""From the `decoding` object, and the fields that stand for parts of it, to a DecodingSpec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plait.decoders.contract.decoding import DecodingSpec, DiffusionMethods, PromptExtras
from plait.decoders.contract.registry import MethodError, compose, from_spec
from plait.decoders.diffusion.pipeline import NEEDS_CONSTRAINT
from plait.decoders.resolve import resolve_decoding
from plait.decoders.speculative.config import PREDICTED, parse_names, resolve_drafters
from plait.server.api.requests.constraints import constraint_spec
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings
from plait.server.wire.capabilities import who_has
from plait.server.wire.messages import ModelInfo

NO_FORM = "{} is for structured output: response_format or structured_outputs."
SEARCH = "decoding.search"
# Fields that a method may be unable to honour, with the value that asks for nothing.
NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
}


def decoding_spec(
    request: GenerationRequest, info: ModelInfo, extras: PromptExtras
) -> DecodingSpec:
    """Return the methods that decode a request, with their options validated.

    Args:
        request: The request.
        info: What its model's worker can do.
        extras: What the request gives beside its prompt.
    Raises:
        BadRequest: a method or option that doesn't exist, that this model's worker can't run, or
            that can't be composed with the others; it names the field that asks for it.
    """
    options = {} if request.decoding is None else request.decoding.model_dump(exclude_none=True)
    if request.search is not None:
        if "search" in options:
            field = request.search.field
            raise BadRequest(f"{field} and {SEARCH} exclude each other.", param=field)
        options["search"] = request.search.method
    try:
        if info.diffusion is None:
            _set_drafters(options, info, has_prediction=request.predicted_text is not None)
        spec = resolve_decoding(options, info.diffusion, extras, capabilities=info.capabilities)
        needing = _needing_constraint(options)
        if needing and constraint_spec(request)[0] is None:
            raise MethodError(NO_FORM.format(needing[0]), "decoding.unmasker")
        _check_unused(request, spec)
        return spec
    except MethodError as error:
        param = client_field(client_fields(request), error.param)
        message = f"{error} {who_has(error.lacking)}".rstrip()
        raise BadRequest(message, param=param, code="unsupported_parameter") from None


def _check_unused(request: GenerationRequest, spec: DecodingSpec) -> None:
    """Raise MethodError for a field that the request's search can't honour."""
    if spec.search is None:
        return
    method = from_spec("search", spec.search).method
    for field in sorted(method.unused):
        if getattr(request, field) not in (None, NEUTRAL[field]):
            raise MethodError(f"{method.name} can't honour {field}.", field)


def check_search_size(
    request: GenerationRequest, spec: DecodingSpec, num_prompts: int, limits: LimitSettings
) -> None:
    """Raise BadRequest if a search would run more sequences than the operator allows."""
    if spec.search is None:
        return
    choice = from_spec("search", spec.search)
    option = choice.method.num_sequences
    if not option:
        return
    param = client_field(client_fields(request), f"{SEARCH}.{option}")
    size, most = getattr(choice.options, option), limits.max_sequences_per_request
    if size > limits.max_n:
        raise BadRequest(f"{param} may be at most {limits.max_n}.", param=param)
    if num_prompts * size > most:
        raise BadRequest(f"prompts x {param} may be at most {most}.", param=param)


def client_fields(request: GenerationRequest) -> Mapping[str, str]:
    """Return the fields that the request has in place of those that a worker's errors name."""
    fields = {"prompt": request.prompt_field, "max_tokens": request.max_tokens_field}
    if request.search is not None:
        fields[SEARCH] = request.search.field
    return fields


def client_field(fields: Mapping[str, str], param: str | None) -> str | None:
    """Return the field that the client used (client_fields) for the one that an error names."""
    if param is None:
        return None
    is_within = (own for name, own in fields.items() if f"{param}.".startswith(f"{name}."))
    return next(is_within, param)


def block_size(decoding: DecodingSpec) -> int:
    """Return the block size of which a text fills whole blocks; 1 where it may have any length."""
    methods = decoding.methods
    if isinstance(methods, DiffusionMethods) and methods.attention == "block":
        return methods.block_size
    return 1


def _set_drafters(options: dict[str, Any], info: ModelInfo, *, has_prediction: bool) -> None:
    """Set the server's default where a request names no drafter, and check for a prediction.

    Raises:
        MethodError: a prediction without the drafter that uses it, or that drafter without one.
    """
    is_named = options.get("drafter", "auto") != "auto"
    if not is_named and info.drafter != "auto":
        options["drafter"] = parse_names(info.drafter)
    is_used = PREDICTED in [choice.method.name for choice in resolve_drafters(options)]
    if has_prediction and not is_used:
        default = "" if is_named else ", by this server's default,"
        drafter = json.dumps(options["drafter"])
        raise MethodError(
            f"decoding.drafter is{default} {drafter}: no draft would go by the prediction. "
            f'Add "{PREDICTED}" to decoding.drafter or leave the prediction out.',
            "prediction",
        )
    if is_named and is_used and not has_prediction:
        raise MethodError(
            f"{PREDICTED} drafts from a chat request's field `prediction`, which is not given.",
            "decoding.drafter",
        )


def _needing_constraint(options: Mapping[str, Any]) -> list[str]:
    """Return the unmasking methods that mean nothing without a constraint."""
    methods = [choice.method for choice in compose(options, "unmasker")]
    return [method.name for method in methods if method.part in NEEDS_CONSTRAINT]
