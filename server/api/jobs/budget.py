"""How many tokens an answer may have: what is asked for, within the model's context."""

from __future__ import annotations

from dataclasses import dataclass

from plait.server.api.jobs.prompts import Prompt
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.pool.messages import ModelInfo

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions


@dataclass(frozen=True, slots=True)
class Room:
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


def budget_of(
    request: GenerationRequest, prompt: Prompt, room: Room, max_tokens: int | None
) -> int:
    """Return how many tokens the answers to a prompt may have; 0 for a template.

    Raises:
        BadRequest: the prompt has no tokens, or fewer are left than were asked for.
    """
    is_chat = isinstance(request, ChatRequest)
    param = "messages" if is_chat else "prompt"
    if not prompt.token_ids:
        raise BadRequest("The prompt has no tokens; give at least one.", param=param)
    if prompt.template is not None:
        max_tokens = 0
    left = room.left(prompt)
    if left < (1 if max_tokens is None else max_tokens):
        raise _too_long(prompt, room, max_tokens, param)
    budget = max_tokens
    if budget is None:
        budget = left if is_chat else min(left, COMPLETION_MAX_TOKENS)
    if (request.min_tokens or 0) > budget:
        raise BadRequest(
            f"min_tokens is {request.min_tokens}, but max_tokens is {budget}.", param="min_tokens"
        )
    return budget


def _too_long(prompt: Prompt, room: Room, max_tokens: int | None, param: str) -> ContextTooLong:
    blocks = "" if room.usable == room.context else f" ({room.usable} in whole blocks)"
    suffix = f", the suffix {len(prompt.suffix)}" if prompt.suffix else ""
    asked = f" and {max_tokens} were asked for" if max_tokens else ""
    return ContextTooLong(
        f"This model's context has {room.context} tokens{blocks}; "
        f"the prompt has {len(prompt.token_ids)}{suffix}{asked}.",
        param=param,
    )
