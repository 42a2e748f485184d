"""The `decoding` object: methods by name, from the registry, checked against the model's worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from plait.decoders.contract.registry import (
    DEFAULTS,
    Choice,
    Kind,
    MethodError,
    check_needs,
    choose,
    compose,
)
from plait.decoders.diffusion.pipeline import check
from plait.decoders.speculative.config import PREDICTED, parse_names, resolve_drafters
from plait.server.api.requests.constraints import constraint_spec
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.wire.messages import ModelInfo

NO_LITERALS = "A scaffold is for structured output: response_format or structured_outputs."
FIELDS = {"suffix_token_ids": "suffix", "holes": "infill"}  # keys for decoders -> request fields


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """What the worker is told of decoding."""

    options: dict[str, Any]
    block_size: int  # the text takes whole blocks of so many positions


def plan_decoding(
    request: GenerationRequest, info: ModelInfo, prompt: Mapping[str, Any]
) -> DecodingPlan:
    """Return what the request says of decoding, for the worker.

    Args:
        request: The request.
        info: What its model's worker can do.
        prompt: What a prompt says beside its tokens (Prompt.options).
    Raises:
        BadRequest: a method or option that isn't there, that this model's worker can't run, or
            that can't be composed with the others.
    """
    options = {} if request.decoding is None else request.decoding.model_dump(exclude_none=True)
    prediction = request.prediction if isinstance(request, ChatRequest) else None
    try:
        if info.diffusion is None:
            _settle_drafter(options, info, has_prediction=prediction is not None)
        for kind in get_args(Kind):
            for choice in _choices(options, kind):
                _check_choice(choice, info)
                _check_form(choice, request)
        return DecodingPlan(options, _block_size({**options, **prompt}, info))
    except MethodError as error:
        param = FIELDS.get(error.param.removeprefix("decoding."), error.param)
        raise BadRequest(str(error), param=param, code="unsupported_parameter") from None


def check_served(request: GenerationRequest, info: ModelInfo) -> None:
    """Raise BadRequest for a field that this model's worker can't honour."""
    spec = info.diffusion
    if spec is not None and isinstance(request, ChatRequest) and request.prediction is not None:
        raise _unsupported("a diffusion model drafts its own canvases", "prediction")
    if spec is not None and set(request.allowed_token_ids or ()) == {spec.mask_id}:
        raise _unsupported("the mask token is never an answer", "allowed_token_ids")
    if spec is not None and request.logprob_token_ids:
        raise _unsupported("a diffusion model tells of its likeliest tokens", "logprob_token_ids")
    has_scores = "prompt_logprobs" in info.capabilities
    if request.prompt_logprobs is not None and not has_scores:
        raise _unsupported("the model gives no logprobs of a prompt", "prompt_logprobs")
    if not isinstance(request, CompletionRequest):
        return
    for name in ("suffix", "infill"):
        if getattr(request, name) and spec is None:
            raise _unsupported("the model has no fill-in-the-middle tokens", name)
    scores = request.echo and request.logprobs is not None
    if scores and not has_scores:
        raise _unsupported("the model gives no logprobs of a prompt", "logprobs")


def _settle_drafter(options: dict[str, Any], info: ModelInfo, *, has_prediction: bool) -> None:
    """Put the server's default where a request names no drafter; a prediction needs its own.

    Raises:
        MethodError: a prediction that no drafter goes by, or the other way round.
    """
    is_own = options.get("drafter", "auto") != "auto"
    if not is_own and info.drafter != "auto":
        options["drafter"] = parse_names(info.drafter)
    is_used = PREDICTED in [choice.method.name for choice in resolve_drafters(options)]
    if has_prediction and not is_used:
        where = "decoding.drafter is" if is_own else "decoding.drafter is, by this server's default"
        raise MethodError(
            f"{where}, {json.dumps(options['drafter'])}: no draft would go by the prediction. "
            f'Add "{PREDICTED}" to decoding.drafter or leave the prediction out.',
            "prediction",
        )
    if is_own and is_used and not has_prediction:
        raise MethodError(
            f"{PREDICTED} drafts from a chat request's field `prediction`, which is not given.",
            "decoding.drafter",
        )


def _choices(options: Mapping[str, Any], kind: Kind) -> tuple[Choice, ...]:
    if kind == "unmasker":
        return compose(options, kind)
    if kind == "drafter":
        return compose(options, kind) and resolve_drafters(options)
    choice = choose(options, kind)
    return () if choice is None else (choice,)


def _check_choice(choice: Choice, info: ModelInfo) -> None:
    method = choice.method
    is_own = method.kind == "unmasker" or method.name == DEFAULTS.get(method.kind)
    if info.diffusion is not None and not is_own:
        raise MethodError(
            f"{method.name} is a {method.kind} of models that write one token after the other; "
            "this is a diffusion model.",
            f"decoding.{method.kind}",
        )
    check_needs(choice, info.capabilities)


def _check_form(choice: Choice, request: GenerationRequest) -> None:
    if choice.method.part == "scaffold" and constraint_spec(request)[0] is None:
        raise MethodError(NO_LITERALS, "decoding.unmasker")


def _block_size(options: Mapping[str, Any], info: ModelInfo) -> int:
    if info.diffusion is not None:
        recipe = check(options, info.diffusion)
        return recipe.block_size if recipe.attention == "block" else 1
    if "canvas" in options:
        raise MethodError(
            "This model writes one token after the other, without a canvas.", "decoding.canvas"
        )
    return 1


def _unsupported(why: str, param: str) -> BadRequest:
    return BadRequest(
        f"{param}: This is not supported: {why}", param=param, code="unsupported_parameter"
    )
