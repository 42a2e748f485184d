"""The answers of /v1/chat/completions: whole, or as a stream of chunks."""

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
    """Words one job's outputs as OpenAI's chat does."""

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

    async def whole(self) -> bytes:
        """Return the whole answer as JSON."""
        job = self._job
        texts: list[list[str]] = [[self._echo] for _ in range(job.n)]
        logprobs: list[list[TokenLogprobs]] = [[] for _ in range(job.n)]
        tokens: list[list[int]] = [[] for _ in range(job.n)]
        reasons: dict[int, objects.ChoiceFinishReason] = {}
        async with aclosing(self._outputs.parts()) as parts:
            async for part in parts:
                texts[part.index].append(part.piece.text)
                logprobs[part.index].extend(part.piece.logprobs)
                tokens[part.index].extend(part.token_ids)
                if part.finish is not None:
                    reasons[part.index] = part.finish
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
        """Yield the answer as server-sent events, ready to be sent."""
        async with aclosing(self._outputs.parts()) as parts:
            async for part in parts:
                yield self._events_of(part)
        yield self._last_events()

    def _events_of(self, part: ChoiceDelta) -> bytes:
        if part.is_first:
            role = objects.ChatDelta(role="assistant", content="", refusal=None)
            first = self._chunk(
                objects.ChatChunkChoice(part.index, role),
                seed=self._job.seed,
                prompt_token_ids=self._ids(self._job.prompts[0].token_ids),
            )
            echo = ChoiceDelta(part.index, TextDelta(self._echo))
            return first + (self._content(echo) if self._echo else b"")
        events, token_ids = b"", part.token_ids
        if part.piece.text or part.piece.logprobs:
            events, token_ids = self._content(part), ()
        if part.finish is not None:
            ids = self._ids(token_ids)
            last = objects.ChatChunkChoice(
                part.index, objects.ChatDelta(), part.finish, token_ids=ids
            )
            events += self._chunk(last)
        return events

    def _content(self, part: ChoiceDelta) -> bytes:
        text = part.piece.text
        choice = objects.ChatChunkChoice(
            part.index,
            objects.ChatDelta(content=text),
            logprobs=self._show(part.piece.logprobs),
            token_ids=self._ids(part.token_ids),
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
