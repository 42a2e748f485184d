"""The request of /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from plait.server.api.schemas.common import (
    FailFastList,
    GenerationRequest,
    Logprobs,
    PositiveInt,
    StrictModel,
    TokenId,
)

TokenIds = Annotated[FailFastList[TokenId], Field(min_length=1)]
Texts = Annotated[FailFastList[str], Field(min_length=1)]
TokenIdLists = Annotated[FailFastList[TokenIds], Field(min_length=1)]


class Infill(StrictModel):
    """The prompt is a template whose holes are filled. Only for diffusion models, as `suffix`."""

    hole: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="What marks a hole in the prompt, such as <hole>."
    )
    lengths: Annotated[FailFastList[PositiveInt], Field(min_length=1, max_length=1024)] = Field(
        description="Tokens of each hole, from left to right."
    )


class CompletionRequest(GenerationRequest):
    """Texts to be continued. Prompts in a list are answered as if each had come alone."""

    prompt: str | Texts | TokenIds | TokenIdLists
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    logprobs: Logprobs | None = Field(
        None, description="Alternatives per token; -1: as many as the server gives."
    )
    best_of: PositiveInt | None = Field(None, description="Must equal n.")
    suffix: str | None = Field(
        None,
        description="Text behind the answer. Only for diffusion models, with full attention.",
    )
    infill: Infill | None = None

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
