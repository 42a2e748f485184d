"""From a chat request to its job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from plait.server.api.interfaces import PoolLike
from plait.server.api.requests.job import GenerationJob, RequestContext, lower
from plait.server.api.requests.limits import check_logprob_ids, check_logprobs, check_shared
from plait.server.api.requests.messages import (
    chat_tokens,
    message_text,
    num_chars,
    template_kwargs,
    warnings_of,
)
from plait.server.api.requests.model_support import check_model, unsupported
from plait.server.api.requests.prompts import Prompt, check_length, predicted_ids
from plait.server.api.schemas.chat import AssistantMessage, ChatRequest
from plait.server.errors import BadRequest
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo


async def lower_chat(
    pool: PoolLike, limits: LimitSettings, request: ChatRequest, context: RequestContext
) -> GenerationJob:
    """Return the job of a chat request.

    Raises:
        BadRequest, NotFound, Unavailable: the request can't be served as it is.
    """
    return await lower(pool, limits, ChatLowering(request), context)


@dataclass(frozen=True, slots=True)
class ChatLowering:
    """A chat request on its way to a job."""

    request: ChatRequest

    @property
    def num_chars(self) -> int:
        """Characters of the messages and the prediction."""
        return num_chars(self.request.messages) + len(self.request.predicted_text or "")

    def check(self, limits: LimitSettings) -> None:
        """Raise BadRequest for the first field that is over a limit or contradicts another."""
        request = self.request
        check_shared(request, limits)
        check_logprobs(request.top_logprobs, limits, param="top_logprobs")
        check_logprob_ids(request)
        if request.top_logprobs and not request.logprobs:
            raise BadRequest("top_logprobs needs logprobs=true.", param="top_logprobs")
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(request, name) == 0:
                raise BadRequest(f"{name} must be at least 1, or -1.", param=name)
        for i, message in enumerate(request.messages):
            if isinstance(message, AssistantMessage) and message.refusal and message.content:
                raise BadRequest(
                    "A message has either content or a refusal.", param=f"messages[{i}].refusal"
                )
        _check_continuation(request)

    def check_model(self, info: ModelInfo) -> None:
        """Raise BadRequest for a field that this model's worker can't honour."""
        if info.diffusion is not None and self.request.prediction is not None:
            raise unsupported("a diffusion model drafts its own canvases", "prediction")
        check_model(self.request, info)

    def prompts(
        self, tokenizer: Tokenizer, vocab_size: int, context: int, limits: LimitSettings
    ) -> Sequence[Prompt]:
        """Return the conversation as one prompt; for a thread."""
        request = self.request
        check = partial(check_length, tokenizer=tokenizer, context=context, param="messages")
        prediction = predicted_ids(request, tokenizer, vocab_size, limits)
        text = message_text(request.messages[-1]) if request.echo else ""
        kwargs = template_kwargs(request, tokenizer)
        token_ids, prefill = chat_tokens(request, kwargs, tokenizer, check)
        return [Prompt(token_ids, text, prediction=prediction, prefill=prefill)]

    def warnings(self, tokenizer: Tokenizer) -> Sequence[str]:
        """Return the paths of fields that the model's chat template ignores."""
        return warnings_of(self.request, tokenizer)


def _check_continuation(request: ChatRequest) -> None:
    if not request.continue_final_message:
        if request.echo:
            raise BadRequest("echo needs continue_final_message=true.", param="echo")
        return
    if request.add_generation_prompt:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    if request.messages[-1].role != "assistant":
        raise BadRequest(
            "The last message must be an assistant's to be continued.", param="messages"
        )
