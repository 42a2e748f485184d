"""What a model's worker can't honour, by the field that asks for it."""

from __future__ import annotations

from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest
from plait.server.wire.capabilities import who_has
from plait.server.wire.messages import ModelInfo


def check_model(request: GenerationRequest, info: ModelInfo) -> None:
    """Raise BadRequest for a shared field that this model's worker can't honour."""
    spec = info.diffusion
    if spec is not None and set(request.allowed_token_ids or ()) == {spec.mask_id}:
        raise unsupported("the mask token is never an answer", "allowed_token_ids")
    if spec is not None and request.logprob_token_ids:
        raise unsupported("a diffusion model tells of its likeliest tokens", "logprob_token_ids")
    check_scores(request.prompt_logprobs, info, param="prompt_logprobs")


def check_scores(num_logprobs: int | None, info: ModelInfo, *, param: str) -> None:
    """Raise BadRequest if logprobs of a prompt are asked for and the worker computes none."""
    if num_logprobs is not None and "prompt_logprobs" not in info.capabilities:
        raise unsupported("the model gives no logprobs of a prompt", param, "prompt_logprobs")


def unsupported(why: str, param: str, lacking: str = "") -> BadRequest:
    """Return the error for a field that this model has no use for.

    lacking: the capability that its worker would need, if that is the reason.
    """
    who = who_has(lacking)
    message = f"{param}: This is not supported: {why}{'. ' if who else ''}{who}"
    return BadRequest(message, param=param, code="unsupported_parameter")
