"""Responses of /v1/completions: one object, or a stream of objects of the same shape."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.api.requests.job import GenerationJob
from plait.server.api.responses import objects
from plait.server.api.responses.obfuscation import padding_for
from plait.server.api.responses.outputs import ChoiceDelta, GenerationOutput
from plait.server.api.responses.sse import DONE, sse_event
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.prompt.logprobs import completion_logprobs, text_offsets


@dataclass(slots=True)
class _ChoiceText:
    """New text of a choice with its tokens and their logprobs, or all of its text."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)  # without those of an echoed prompt

    def add(self, other: _ChoiceText) -> None:
        self.text += other.text
        self.token_ids += other.token_ids
        self.logprobs += other.logprobs
        self.offsets += other.offsets
        self.output_ids += other.output_ids


class CompletionResponseWriter:
    """Writes the outputs of one job as OpenAI's completion objects."""

    def __init__(
        self, job: GenerationJob, request: CompletionRequest, outputs: GenerationOutput
    ) -> None:
        self._job = job
        self._request = request
        self._outputs = outputs
        self._has_echoed: set[int] = set()
        self._empty = objects.Completion(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=job.fingerprint,
            choices=[],
        )

    async def body(self) -> bytes:
        """Return the whole response as JSON."""
        count = self._job.n * len(self._job.prompts)
        texts = [_ChoiceText() for _ in range(count)]
        reasons: dict[int, objects.ChoiceFinishReason] = {}
        async with aclosing(self._outputs.deltas()) as deltas:
            async for delta in deltas:
                texts[delta.index].add(self._text_of(delta))
                if delta.finish is not None:
                    reasons[delta.index] = delta.finish
        choices = [self._choice(i, text, reasons[i], is_first=True) for i, text in enumerate(texts)]
        decoding = self._outputs.decoding()
        return objects.encode(
            msgspec.structs.replace(
                self._empty,
                choices=choices,
                usage=self._outputs.usage(),
                seed=self._job.seed,
                decoding=UNSET if decoding is None else decoding,
            )
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the response as server-sent events."""
        async with aclosing(self._outputs.deltas()) as deltas:
            async for delta in deltas:
                if not delta.is_first:
                    yield self._event_of(delta)
        yield self._last_events()

    def _event_of(self, delta: ChoiceDelta) -> bytes:
        is_start = delta.index not in self._has_echoed
        text = self._text_of(delta)
        usage = self._outputs.usage() if self._request.counts_usage else None
        return self._event(
            choices=[self._choice(delta.index, text, delta.finish, is_first=is_start)],
            usage=usage if self._request.includes_usage else UNSET,
            seed=self._job.seed if is_start else UNSET,
            obfuscation=padding_for(text.text) if self._request.includes_obfuscation else UNSET,
        )

    def _choice(
        self,
        index: int,
        text: _ChoiceText,
        finish: objects.ChoiceFinishReason | None,
        *,
        is_first: bool,
    ) -> objects.CompletionChoice:
        prompt = index // self._job.n
        has_ids = self._request.return_token_ids
        scored = self._job.prompt_logprobs if finish is not None and is_first else None
        return objects.CompletionChoice(
            index,
            text.text,
            finish,
            self._show(text),
            text.output_ids if has_ids else UNSET,
            list(self._job.prompts[prompt].token_ids) if has_ids and is_first else UNSET,
            self._outputs.ranked_prompt(prompt, scored),
        )

    def _last_events(self) -> bytes:
        decoding = self._outputs.decoding()
        events = b""
        if self._request.includes_usage or decoding is not None:
            events = self._event(
                usage=self._outputs.usage() if self._request.includes_usage else UNSET,
                decoding=UNSET if decoding is None else decoding,
            )
        return events + DONE

    def _event(self, **fields: Any) -> bytes:
        return sse_event(objects.encode(msgspec.structs.replace(self._empty, **fields)))

    def _text_of(self, delta: ChoiceDelta) -> _ChoiceText:
        """Return the new text of a choice, with its prompt in front if that is echoed."""
        if delta.is_first:
            return _ChoiceText()
        shown = _ChoiceText()
        shift = 0
        if self._request.echo:
            prompt = delta.index // self._job.n
            shift = len(self._job.prompts[prompt].text)
            if delta.index not in self._has_echoed:
                shown.add(self._prompt_text(prompt))
        self._has_echoed.add(delta.index)
        new = delta.content
        offsets = [offset + shift for offset in new.offsets]
        shown.add(
            _ChoiceText(
                new.text,
                [entry.token_id for entry in new.logprobs],
                [*new.logprobs],
                offsets,
                list(delta.token_ids),
            )
        )
        return shown

    def _prompt_text(self, prompt: int) -> _ChoiceText:
        text = self._job.prompts[prompt].text
        if self._request.logprobs is None:
            return _ChoiceText(text)
        ids, hidden = self._job.prompts[prompt].token_ids, self._job.prompts[prompt].num_hidden
        asked = self._job.requests[prompt].sampling.logprobs or 0
        logprobs = list(self._outputs.prompt_logprobs(prompt, asked))
        offsets = [0] * hidden + text_offsets(self._job.tokenizer, ids[hidden:])
        return _ChoiceText(text, list(ids), logprobs, offsets)

    def _show(self, text: _ChoiceText) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        return completion_logprobs(self._job.tokenizer, text.token_ids, text.logprobs, text.offsets)
