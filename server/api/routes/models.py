"""GET /v1/models, and models by id."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from plait.server.api.app_state import pool_of
from plait.server.api.interfaces import ServedModelLike
from plait.server.api.openapi import response_docs
from plait.server.api.requests.job import find_model
from plait.server.api.responses import objects

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=None, responses=response_docs(objects.ModelList))
async def list_models(request: Request) -> Response:
    """List the served models."""
    return _json(objects.ModelList([model_of(served) for served in pool_of(request).models()]))


# A path parameter, because names of Hugging Face models contain a slash.
@router.get(
    "/v1/models/{model_id:path}", response_model=None, responses=response_docs(objects.ModelObject)
)
async def retrieve_model(model_id: str, request: Request) -> Response:
    """Return one served model."""
    return _json(model_of(find_model(pool_of(request), model_id)))


def model_of(served: ServedModelLike) -> objects.ModelObject:
    """Return the object of a served model."""
    info, sampling = served.info, served.tokenizer.sampling.stated() or UNSET
    if info is None:
        return objects.ModelObject(served.name, served.created, None, None, sampling=sampling)
    return objects.ModelObject(
        served.name,
        served.created,
        info.max_model_len,
        info.capabilities,
        diffusion=info.diffusion or UNSET,
        sampling=sampling,
    )


def _json(value: objects.ModelObject | objects.ModelList) -> Response:
    return Response(objects.encode(value), media_type="application/json")
