"""How many tokens an answer may have: what is asked for, within the model's context."""

from __future__ import annotations

from dataclasses import dataclass

from plait.server.api.requests.prompts import Prompt
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.wire.messages import ModelInfo

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
REST_OF_CONTEXT = -1  # max_tokens: what the context leaves, as llama.cpp and others have it


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """The positions that a text may take."""

    info: ModelInfo
    block_size: int  # a text takes whole blocks of so many positions

    @property
    def context(self) -> int:
        """Positions that the model, and its KV cache, have for one text."""
        info = self.info
        return min(info.max_model_len, (info.num_blocks - 1) * info.block_size)

    @property
    def usable(self) -> int:
        """Those of them that fill blocks."""
        return self.context - self.context % self.block_size

    def left(self, prompt: Prompt) -> int:
        """Return how many tokens may stand behind a prompt, or between it and its suffix."""
        return self.usable - len(prompt.token_ids) - len(prompt.suffix)


def max_new_tokens(
    request: GenerationRequest, prompt: Prompt, room: ContextBudget, *, clamp: bool = False
) -> int:
    """Return how many tokens the answers to a prompt may have; 0 for a template.

    Args:
        request: Its max_tokens, or max_completion_tokens.
        prompt: What is answered.
        room: The model's.
        clamp: Cut max_tokens to what the prompt leaves of the context.
    Raises:
        BadRequest: the prompt has no tokens, or fewer are left than were asked for.
    """
    is_chat = isinstance(request, ChatRequest)
    param = "messages" if is_chat else "prompt"
    if not prompt.token_ids:
        raise BadRequest("The prompt has no tokens; give at least one.", param=param)
    max_param, max_tokens = requested_max_tokens(request)
    if prompt.template is not None:
        max_tokens = 0
    left = room.left(prompt)
    default = left if is_chat or max_tokens == REST_OF_CONTEXT else min(left, COMPLETION_MAX_TOKENS)
    if max_tokens == REST_OF_CONTEXT:
        max_tokens = None
    if max_tokens and left >= 1 and clamp:
        max_tokens = min(max_tokens, left)
    if left < (1 if max_tokens is None else max_tokens):
        raise _too_long(prompt, room, max_tokens, param if left < 1 else max_param)
    budget = default if max_tokens is None else max_tokens
    if (request.min_tokens or 0) > budget:
        raise BadRequest(
            f"min_tokens is {request.min_tokens}, but max_tokens is {budget}.", param="min_tokens"
        )
    return budget


def requested_max_tokens(request: GenerationRequest) -> tuple[str, int | None]:
    """Return how long the answers may be as the request says, and the field that says so."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens


def _too_long(
    prompt: Prompt, room: ContextBudget, max_tokens: int | None, param: str
) -> ContextTooLong:
    blocks = "" if room.usable == room.context else f" ({room.usable} in whole blocks)"
    suffix = f", the suffix {len(prompt.suffix)}" if prompt.suffix else ""
    asked = f" and {max_tokens} were asked for" if max_tokens else ""
    left = room.left(prompt)
    advice = f" Ask for {left} at most, or for none." if max_tokens and left > 0 else ""
    return ContextTooLong(
        f"This model's context has {room.context} tokens{blocks}; "
        f"the prompt has {len(prompt.token_ids)}{suffix}{asked}.{advice}",
        param=param,
    )
