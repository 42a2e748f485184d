"""The request of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from plait.server.api.schemas.common import GenerationRequest, Items, TokenId, Unsupported

TokenIds = Annotated[Items[TokenId], Field(min_length=1)]
Texts = Annotated[Items[str], Field(min_length=1)]
TokenIdLists = Annotated[Items[TokenIds], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """Texts to be continued. Prompts in a list are answered as if each had come alone."""

    prompt: str | Texts | TokenIds | TokenIdLists
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(None, ge=0, lt=2**31, description="Alternatives per token.")
    best_of: int | None = Field(None, ge=1, lt=2**31, description="Must equal n.")
    suffix: Annotated[Any, Unsupported("the model has no fill-in-the-middle tokens")] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        match self.prompt:
            case str() | [int(), *_]:
                return [self.prompt]  # type: ignore[list-item]
            case several:
                return list(several)  # type: ignore[arg-type]

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives reported per token; None for no logprobs at all."""
        return self.logprobs
