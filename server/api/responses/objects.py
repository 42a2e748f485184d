"""The answers of chat and completions, as OpenAI shapes them, and as cheap to encode as can be.

Extensions beside OpenAI's fields: `seed` (what to send to get the same tokens again) and
`decoding` (counts, when decoding.trace asks for them).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from plait.decoders.diffusion.spec import DiffusionSpec

ChoiceFinishReason = Literal["stop", "length"]


class RankedLogprob(Struct, frozen=True):
    """What the model gave to a token of a prompt, as vLLM has it."""

    logprob: float
    rank: int | None  # 1 is the likeliest token; null where it is behind the alternatives
    decoded_token: str


PromptLogprobs = list[dict[int, RankedLogprob] | None]  # null for the first token


class PromptTokensDetails(Struct, frozen=True):
    """What the prompt cost."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    """What the answer is made of."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct, frozen=True):
    """Tokens; those of the answers include the token that ended each."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatMessage(Struct, frozen=True):
    """What the model says."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: ChoiceFinishReason
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    """The answers of a chat request."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    seed: int
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: Literal["default"] = "default"
    metadata: dict[str, str] | UnsetType = UNSET
    decoding: dict[str, Any] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """A piece of one answer."""

    index: int
    delta: ChatDelta
    finish_reason: ChoiceFinishReason | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, frozen=True):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    service_tier: Literal["default"] = "default"
    usage: Usage | UnsetType | None = UNSET
    seed: int | UnsetType = UNSET  # in the first chunk of each answer
    prompt_token_ids: list[int] | UnsetType = UNSET  # there, too
    obfuscation: str | UnsetType = UNSET
    decoding: dict[str, Any] | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    """One answer, or a piece of one: finish_reason is null until the last."""

    index: int
    text: str
    finish_reason: ChoiceFinishReason | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # of a stream: in the first event of an answer
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, frozen=True):
    """The answers of a completions request, or one event of their stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET
    seed: int | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
    decoding: dict[str, Any] | UnsetType = UNSET


class ModelObject(Struct, frozen=True):
    """A served model."""

    id: str
    created: int
    max_model_len: int | None  # null until its worker has loaded it
    object: Literal["model"] = "model"
    owned_by: str = "plait"
    diffusion: DiffusionSpec | UnsetType = UNSET  # of a diffusion model
    sampling: dict[str, float] | UnsetType = UNSET  # what a silent request gets, if not OpenAI's


class ModelList(Struct, frozen=True):
    """The served models."""

    data: list[ModelObject]
    object: Literal["list"] = "list"


encode = msgspec.json.Encoder().encode
