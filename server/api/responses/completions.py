"""The answers of /v1/completions: whole, or as a stream of pieces of the same shape."""

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
    """A piece of a choice with its tokens' logprobs, or all of it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)  # token ids of the answer alone

    def add(self, other: _ChoiceText) -> None:
        self.text += other.text
        self.token_ids += other.token_ids
        self.logprobs += other.logprobs
        self.offsets += other.offsets
        self.answered += other.answered


class CompletionResponseWriter:
    """Words one job's outputs as OpenAI's completions do."""

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

    async def whole(self) -> bytes:
        """Return the whole answer as JSON."""
        count = self._job.n * len(self._job.prompts)
        texts = [_ChoiceText() for _ in range(count)]
        reasons: dict[int, objects.ChoiceFinishReason] = {}
        async with aclosing(self._outputs.parts()) as parts:
            async for part in parts:
                texts[part.index].add(self._text_of(part))
                if part.finish is not None:
                    reasons[part.index] = part.finish
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
        """Yield the answer as server-sent events, ready to be sent."""
        async with aclosing(self._outputs.parts()) as parts:
            async for part in parts:
                if not part.is_first:
                    yield self._event_of(part)
        yield self._last_events()

    def _event_of(self, part: ChoiceDelta) -> bytes:
        is_start = part.index not in self._has_echoed
        text = self._text_of(part)
        usage = self._outputs.usage() if self._request.counts_usage else None
        return self._event(
            choices=[self._choice(part.index, text, part.finish, is_first=is_start)],
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
            text.answered if has_ids else UNSET,
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

    def _text_of(self, part: ChoiceDelta) -> _ChoiceText:
        """Return a part as it is shown: after its prompt, if that is echoed."""
        if part.is_first:
            return _ChoiceText()
        shown = _ChoiceText()
        shift = 0
        if self._request.echo:
            prompt = part.index // self._job.n
            shift = len(self._job.prompts[prompt].text)
            if part.index not in self._has_echoed:
                shown.add(self._prompt_text(prompt))
        self._has_echoed.add(part.index)
        piece = part.piece
        offsets = [offset + shift for offset in piece.offsets]
        shown.add(
            _ChoiceText(
                piece.text,
                [e.token_id for e in piece.logprobs],
                [*piece.logprobs],
                offsets,
                list(part.token_ids),
            )
        )
        return shown

    def _prompt_text(self, prompt: int) -> _ChoiceText:
        text = self._job.prompts[prompt].text
        if self._request.logprobs is None:
            return _ChoiceText(text)
        ids, hidden = self._job.prompts[prompt].token_ids, self._job.prompts[prompt].num_hidden
        logprobs = list(self._outputs.prompt_logprobs(prompt))
        offsets = [0] * hidden + text_offsets(self._job.tokenizer, ids[hidden:])
        return _ChoiceText(text, list(ids), logprobs, offsets)

    def _show(self, text: _ChoiceText) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        return completion_logprobs(self._job.tokenizer, text.token_ids, text.logprobs, text.offsets)
