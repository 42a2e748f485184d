"""The `decoding` object: methods by name, from the registry, checked against the model's worker."""

from __future__ import annotations

from typing import Any, get_args

from plait.decoders.registry import Kind, MethodError, check_needs, choose
from plait.server.api.schemas.common import GenerationRequest
from plait.server.errors import BadRequest
from plait.server.pool.messages import ModelInfo


def decoding_options(request: GenerationRequest, info: ModelInfo) -> dict[str, Any]:
    """Return what the request says of decoding, for the worker.

    Raises:
        BadRequest: a method or option that isn't there, or that this model's worker can't run.
    """
    if request.decoding is None:
        return {}
    options = request.decoding.model_dump(exclude_none=True)
    try:
        for kind in get_args(Kind):
            choice = choose(options, kind)
            if choice is not None:
                check_needs(choice, info.capabilities)
    except MethodError as error:
        raise BadRequest(str(error), param=error.param, code="unsupported_parameter") from None
    return options
