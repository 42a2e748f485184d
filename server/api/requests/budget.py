"""How many tokens may be generated: what the request asks for, within the model's context."""

from __future__ import annotations

from dataclasses import dataclass

from plait.server.api.requests.prompts import Prompt
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.wire.messages import ModelInfo

REST_OF_CONTEXT = -1  # max_tokens: all that the context leaves, as in llama.cpp


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """The positions that the tokens of one text may take."""

    info: ModelInfo
    block_size: int  # a text fills whole blocks of so many positions

    @property
    def context(self) -> int:
        """Positions that both the model and its KV cache have for one text."""
        info = self.info
        return min(info.max_model_len, (info.num_blocks - 1) * info.block_size)

    @property
    def usable(self) -> int:
        """The positions of whole blocks."""
        return self.context - self.context % self.block_size

    def left(self, prompt: Prompt) -> int:
        """Return how many tokens may follow a prompt, or stand between it and its suffix."""
        return self.usable - len(prompt.token_ids) - len(prompt.suffix)


def max_new_tokens(
    request: GenerationRequest, prompt: Prompt, room: ContextBudget, *, clamp: bool = False
) -> int:
    """Return how many tokens each output of a prompt may have; 0 for an infill template.

    Args:
        request: Says how many: max_tokens or max_completion_tokens.
        prompt: The prompt.
        room: The model's context.
        clamp: Reduce max_tokens to what the prompt leaves of the context.
    Raises:
        BadRequest: the prompt has no tokens, or the context has no room for that many.
    """
    if not prompt.token_ids:
        raise BadRequest("The prompt has no tokens; give at least one.", param=request.prompt_field)
    max_param = request.max_tokens_field
    max_tokens: int | None = getattr(request, max_param)
    if prompt.template is not None:
        max_tokens = 0
    left = room.left(prompt)
    default = left
    if max_tokens == REST_OF_CONTEXT:
        max_tokens = None
    elif request.default_max_tokens is not None:
        default = min(left, request.default_max_tokens)
    if max_tokens and left >= 1 and clamp:
        max_tokens = min(max_tokens, left)
    if left < (1 if max_tokens is None else max_tokens):
        raise _too_long(prompt, room, max_tokens, request.prompt_field if left < 1 else max_param)
    budget = default if max_tokens is None else max_tokens
    if (request.min_tokens or 0) > budget:
        raise BadRequest(
            f"min_tokens is {request.min_tokens}, but max_tokens is {budget}.", param="min_tokens"
        )
    return budget


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
