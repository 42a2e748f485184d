"""The request of /v1/completions."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from plait.server.api.schemas.base import (
    FailFastList,
    Logprobs,
    PositiveInt,
    StrictModel,
    TokenId,
)
from plait.server.api.schemas.generation import GenerationRequest, RequestedSearch

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
    """Texts to continue. Each prompt of a list is completed by itself."""

    id_prefix: ClassVar[str] = "cmpl"
    prompt_field: ClassVar[str] = "prompt"
    default_max_tokens: ClassVar[int | None] = 16  # OpenAI's default

    prompt: str | Texts | TokenIds | TokenIdLists
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    logprobs: Logprobs | None = Field(
        None, description="Alternatives per token; -1: as many as the server gives."
    )
    best_of: PositiveInt | None = Field(
        None, description="Sample so many and return the n likeliest; not with stream. At least n."
    )
    suffix: str | None = Field(
        None,
        description="Text behind the answer. Only for diffusion models, with full attention.",
    )
    infill: Infill | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        match self.prompt:
            case str() | [int(), *_]:
                return [self.prompt]  # type: ignore[list-item]
            case several:
                return list(several)  # type: ignore[arg-type]

    @property
    def search(self) -> RequestedSearch | None:
        """The search that fields beside `decoding` ask for."""
        if self.best_of in (None, self.n or 1):
            return super().search
        return RequestedSearch("best_of", {"name": "best-of", "num_samples": self.best_of})

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives reported per output token; None for no logprobs at all."""
        return self.logprobs

    @property
    def num_echo_logprobs(self) -> int | None:
        """Alternatives reported per token of an echoed prompt; None for no logprobs of it."""
        return self.logprobs if self.echo else None
