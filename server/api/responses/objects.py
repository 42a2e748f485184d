"""OpenAI's response objects of chat, completions and models, as structs that encode fast.

Extensions: `seed` (send it to get the same tokens again) and `decoding` (the counts that
decoding.trace requests).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from plait.decoders.diffusion.spec import DiffusionSpec

ChoiceFinishReason = Literal["stop", "length"]


class RankedLogprob(Struct, frozen=True):
    """The logprob of a prompt token, in vLLM's shape."""

    logprob: float
    rank: int | None  # 1 is the likeliest token; null if it is not among the alternatives
    decoded_token: str


PromptLogprobs = list[dict[int, RankedLogprob] | None]  # null for the first token


class PromptTokensDetails(Struct, frozen=True):
    """Details of the prompt tokens."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    """Details of the generated tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    searched_tokens: int | UnsetType = UNSET  # of a search: generated for it, returned or not


class Usage(Struct, frozen=True):
    """Token counts; completion_tokens includes the stop token of each choice."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatMessage(Struct, frozen=True):
    """The message that was generated."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One output."""

    index: int
    message: ChatMessage
    finish_reason: ChoiceFinishReason
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    """The outputs of a chat request."""

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
    """What a chunk appends to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """New text of one choice."""

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
    seed: int | UnsetType = UNSET  # in the first chunk of each choice
    prompt_token_ids: list[int] | UnsetType = UNSET  # likewise
    obfuscation: str | UnsetType = UNSET
    decoding: dict[str, Any] | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    """One output, or new text of one: finish_reason is null until the last event."""

    index: int
    text: str
    finish_reason: ChoiceFinishReason | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # of a stream: in the first event of a choice
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, frozen=True):
    """The outputs of a completions request, or one event of their stream."""

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
    capabilities: list[str] | None  # optional features that its worker has; null until then
    object: Literal["model"] = "model"
    owned_by: str = "plait"
    diffusion: DiffusionSpec | UnsetType = UNSET  # of a diffusion model
    sampling: dict[str, float] | UnsetType = UNSET  # the model's defaults, if not OpenAI's


class ModelList(Struct, frozen=True):
    """The served models."""

    data: list[ModelObject]
    object: Literal["list"] = "list"


encode = msgspec.json.Encoder().encode
