"""Requests of /v1/draft_store."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from plait.server.api.schemas.base import FailFastList, ModelName, StrictModel, TokenId

Salt = Annotated[str, StringConstraints(min_length=1)]
NonEmptyText = Annotated[str, StringConstraints(min_length=1)]
NonEmptyTokens = Annotated[FailFastList[TokenId], Field(min_length=1)]


class DraftStoreRequest(StrictModel):
    """The draft store that a request is about."""

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
    cache_salt: Salt | None = Field(
        None, description="The store that requests with this salt and the same API key use."
    )


class ImportRequest(DraftStoreRequest):
    """Texts to draft from: what outputs will probably repeat."""

    texts: Annotated[FailFastList[NonEmptyText | NonEmptyTokens], Field(min_length=1)] = Field(
        description="Each as text or as token ids."
    )


class ClearRequest(DraftStoreRequest):
    """A draft store to be emptied."""

    everywhere: bool | None = Field(
        None, description="The stores of all salts; only where the server has no API keys."
    )


class SaveRequest(StrictModel):
    """A model whose draft stores are to be written to disk."""

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
