"""Responses of /v1/chat/completions: one object, or a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.api.requests.job import GenerationJob
from plait.server.api.responses import objects
from plait.server.api.responses.obfuscation import padding_for
from plait.server.api.responses.outputs import ChoiceDelta, GenerationOutput
from plait.server.api.responses.sse import DONE, sse_event
from plait.server.api.schemas.chat import ChatRequest
from plait.server.prompt.logprobs import chat_logprobs
from plait.server.prompt.stream import TextDelta


class ChatResponseWriter:
    """Writes the outputs of one job as OpenAI's chat completion objects."""

    def __init__(self, job: GenerationJob, request: ChatRequest, outputs: GenerationOutput) -> None:
        self._job = job
        self._request = request
        self._outputs = outputs
        self._echo = job.prompts[0].text if request.echo else ""
        self._has_logprobs = bool(request.logprobs)
        self._empty = objects.ChatCompletionChunk(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=job.fingerprint,
            choices=[],
            usage=None if request.includes_usage else UNSET,
        )

    async def body(self) -> bytes:
        """Return the whole response as JSON."""
        job = self._job
        texts: list[list[str]] = [[self._echo] for _ in range(job.n)]
        logprobs: list[list[TokenLogprobs]] = [[] for _ in range(job.n)]
        tokens: list[list[int]] = [[] for _ in range(job.n)]
        reasons: dict[int, objects.ChoiceFinishReason] = {}
        async with aclosing(self._outputs.deltas()) as deltas:
            async for delta in deltas:
                texts[delta.index].append(delta.content.text)
                logprobs[delta.index].extend(delta.content.logprobs)
                tokens[delta.index].extend(delta.token_ids)
                if delta.finish is not None:
                    reasons[delta.index] = delta.finish
        choices = [
            objects.ChatChoice(
                i,
                objects.ChatMessage("".join(texts[i])),
                reasons[i],
                self._show(logprobs[i]),
                self._ids(tokens[i]),
            )
            for i in range(job.n)
        ]
        decoding = self._outputs.decoding()
        return objects.encode(
            objects.ChatCompletion(
                id=job.id,
                created=job.created,
                model=job.model,
                system_fingerprint=job.fingerprint,
                choices=choices,
                usage=self._outputs.usage(),
                seed=job.seed,
                metadata=UNSET if self._request.metadata is None else self._request.metadata,
                decoding=UNSET if decoding is None else decoding,
                prompt_token_ids=self._ids(job.prompts[0].token_ids),
                prompt_logprobs=self._outputs.ranked_prompt(0, job.prompt_logprobs),
            )
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the response as server-sent events."""
        async with aclosing(self._outputs.deltas()) as deltas:
            async for delta in deltas:
                yield self._events_of(delta)
        yield self._last_events()

    def _events_of(self, delta: ChoiceDelta) -> bytes:
        if delta.is_first:
            role = objects.ChatDelta(role="assistant", content="", refusal=None)
            first = self._chunk(
                objects.ChatChunkChoice(delta.index, role),
                seed=self._job.seed,
                prompt_token_ids=self._ids(self._job.prompts[0].token_ids),
            )
            echo = ChoiceDelta(delta.index, TextDelta(self._echo))
            return first + (self._content(echo) if self._echo else b"")
        events, token_ids = b"", delta.token_ids
        if delta.content.text or delta.content.logprobs:
            events, token_ids = self._content(delta), ()
        if delta.finish is not None:
            ids = self._ids(token_ids)
            last = objects.ChatChunkChoice(
                delta.index, objects.ChatDelta(), delta.finish, token_ids=ids
            )
            events += self._chunk(last)
        return events

    def _content(self, delta: ChoiceDelta) -> bytes:
        text = delta.content.text
        choice = objects.ChatChunkChoice(
            delta.index,
            objects.ChatDelta(content=text),
            logprobs=self._show(delta.content.logprobs),
            token_ids=self._ids(delta.token_ids),
        )
        if self._request.includes_obfuscation:
            return self._chunk(choice, obfuscation=padding_for(text))
        return self._chunk(choice)

    def _last_events(self) -> bytes:
        decoding = self._outputs.decoding()
        events = b""
        if self._request.includes_usage:
            extra = {} if decoding is None else {"decoding": decoding}
            events = self._event(usage=self._outputs.usage(), **extra)
        elif decoding is not None:
            events = self._event(decoding=decoding)
        return events + DONE

    def _chunk(self, choice: objects.ChatChunkChoice, **extra: Any) -> bytes:
        if self._request.counts_usage:
            extra["usage"] = self._outputs.usage()
        return self._event(choices=[choice], **extra)

    def _event(self, **fields: Any) -> bytes:
        return sse_event(objects.encode(msgspec.structs.replace(self._empty, **fields)))

    def _ids(self, token_ids: Sequence[int]) -> list[int] | UnsetType:
        return list(token_ids) if self._request.return_token_ids else UNSET

    def _show(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        return chat_logprobs(self._job.tokenizer, logprobs) if self._has_logprobs else None
