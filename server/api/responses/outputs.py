"""From the pool's events to the text of each choice and the usage of the whole job."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET, UnsetType

from plait.decoders.contract.decoder import FinishReason, PredictionResult, TokenLogprobs
from plait.server.api.interfaces import PoolLike
from plait.server.api.requests.decoding import client_field
from plait.server.api.requests.job import GenerationJob
from plait.server.api.requests.prompts import Prompt
from plait.server.api.responses import objects
from plait.server.api.responses.objects import (
    ChoiceFinishReason,
    CompletionTokensDetails,
    PromptTokensDetails,
    Usage,
)
from plait.server.errors import BadRequest, DeadlineExceeded, Internal, ServerError, Unavailable
from plait.server.prompt.infill import InfillStream
from plait.server.prompt.logprobs import ranked
from plait.server.prompt.stream import TextDelta, TextStream
from plait.server.wire.messages import Delta, Started

Event = Started | Delta
NO_TEXT = TextDelta("")


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new in one choice. Its first delta says only that it has started."""

    index: int
    content: TextDelta = NO_TEXT
    token_ids: Sequence[int] = ()  # generated since the last delta, a stop token included
    finish: ChoiceFinishReason | None = None
    is_first: bool = False


@dataclass(slots=True)
class _ChoiceState:
    stream: TextStream | InfillStream
    is_done: bool = False
    new_token_ids: list[int] = field(default_factory=list)  # that no delta has reported

    def take_new_token_ids(self) -> list[int]:
        """Return the tokens that no delta has reported, and count them as reported."""
        taken, self.new_token_ids = self.new_token_ids, []
        return taken


@dataclass(slots=True)
class _PromptState:
    """The outputs of one prompt."""

    choices: list[_ChoiceState]
    has_started: bool = False
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    waiting: list[Delta] = field(default_factory=list)  # for the prompt's logprobs

    @property
    def is_done(self) -> bool:
        return all(choice.is_done for choice in self.choices)


class GenerationOutput:
    """Runs a job once. Usage and log fields are complete when `deltas` has ended."""

    def __init__(self, pool: PoolLike, job: GenerationJob) -> None:
        self.traces: dict[int, dict[str, Any]] = {}  # by choice; absent if a stop string ended it
        self._pool = pool
        self._job = job
        self._ended_by_token = 0
        self._first_token_at = 0.0  # time.monotonic()
        self._reasons: list[
            ChoiceFinishReason
        ] = []  # of the choices, in the order in which they ended
        self._accepted, self._rejected = 0, 0  # draft tokens from the request's prediction
        self._prompts = [
            _PromptState([_ChoiceState(self._stream_of(prompt)) for _ in range(job.n)])
            for prompt in job.prompts
        ]

    def usage(self) -> Usage:
        """Return the tokens that were read and generated so far."""
        prompt = sum(prompt.num_given for prompt in self._job.prompts)
        streams = [choice.stream for each in self._prompts for choice in each.choices]
        completion = sum(stream.num_tokens for stream in streams) + self._ended_by_token
        cached = sum(each.cached_tokens for each in self._prompts)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached),
            completion_tokens_details=CompletionTokensDetails(
                accepted_prediction_tokens=self._accepted,
                rejected_prediction_tokens=self._rejected,
            ),
        )

    def log_fields(self) -> dict[str, Any]:
        """Return the generation's fields of the access log."""
        usage, arrived = self.usage(), self._job.requests[0].arrived
        fields: dict[str, Any] = {
            "model": self._job.model,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if self._first_token_at:
            fields["ttft"] = round(self._first_token_at - arrived, 4)
        if self._reasons:
            fields["finish_reason"] = ",".join(self._reasons)
        return fields

    def prompt_logprobs(self, prompt: int) -> Sequence[TokenLogprobs | None]:
        """Return the logprobs of a prompt's tokens; known before any delta with text."""
        return self._prompts[prompt].prompt_logprobs or ()

    def ranked_prompt(self, prompt: int, count: int | None) -> objects.PromptLogprobs | UnsetType:
        """Return the logprobs of a prompt's tokens in vLLM's shape; UNSET unless requested."""
        if count is None:
            return UNSET
        tokenizer = self._job.tokenizer
        return [
            None
            if entry is None
            else {i: objects.RankedLogprob(*v) for i, v in ranked(tokenizer, entry, count).items()}
            for entry in self.prompt_logprobs(prompt)
        ]

    def decoding(self) -> dict[str, Any] | None:
        """Return the requested traces: a single choice's own, or a list of several."""
        if not self.traces:
            return None
        if len(self._prompts) * self._job.n == 1:
            return self.traces[0]
        return {"choices": [{"index": i, **self.traces[i]} for i in sorted(self.traces)]}

    async def deltas(self) -> AsyncGenerator[ChoiceDelta, None]:
        """Generate, and yield what is new; closing this early aborts the rest.

        Raises:
            ServerError: the pool refuses the job or can't finish it. A BadRequest names the field
                that the client used.
        """
        streams = [self._pool.generate(self._job.model, r) for r in self._job.requests]
        fields = self._job.fields
        single = len(streams) == 1
        merged = _single(streams[0], fields) if single else _merged(streams, fields)
        async with aclosing(merged) as events:
            async for prompt, event in events:
                for delta in self._take(prompt, event):
                    yield delta
                if all(state.is_done for state in self._prompts):
                    return
        raise Internal("The answer ended early.")

    def _stream_of(self, prompt: Prompt) -> TextStream | InfillStream:
        job = self._job
        if prompt.template is not None:
            return InfillStream(job.token_bytes, prompt.template)
        return TextStream(job.token_bytes, job.stop, include_stop=job.include_stop)

    def _take(self, prompt: int, event: Event) -> Iterator[ChoiceDelta]:
        state = self._prompts[prompt]
        if not state.has_started:
            state.has_started = True
            first = prompt * self._job.n
            yield from (ChoiceDelta(first + i, is_first=True) for i in range(self._job.n))
        if isinstance(event, Started):
            state.cached_tokens = state.cached_tokens or event.cached_tokens
            return
        if event.prompt_logprobs is not None:
            state.prompt_logprobs = event.prompt_logprobs
        state.waiting.append(event)
        if self._job.requests[prompt].prompt_logprobs is None or state.prompt_logprobs:
            ready, state.waiting = state.waiting, []
            for delta in ready:
                yield from self._advance(prompt, delta)

    def _advance(self, prompt: int, delta: Delta) -> Iterator[ChoiceDelta]:
        choice = self._prompts[prompt].choices[delta.index]
        if choice.is_done:
            return
        _check_reason(delta.finish_reason)
        index = prompt * self._job.n + delta.index
        if delta.token_ids and not self._first_token_at:
            self._first_token_at = time.monotonic()
        before = choice.stream.num_tokens
        text = choice.stream.push(delta.token_ids, delta.logprobs)
        if delta.predicted is not None:
            is_cut = choice.stream.stop is not None
            self._count(delta.predicted, choice.stream.num_tokens - before if is_cut else None)
        choice.new_token_ids += delta.token_ids[: choice.stream.num_tokens - before]
        finish = self._end(choice, delta)
        if text.text or text.logprobs:
            yield ChoiceDelta(index, text, choice.take_new_token_ids())
        if finish is None:
            return
        choice.is_done = True
        self._reasons.append(finish)
        if delta.trace is not None:
            self.traces[index] = delta.trace
        if delta.stop_token is not None and choice.stream.stop is None:
            choice.new_token_ids.append(delta.stop_token)
        yield ChoiceDelta(index, choice.stream.finish(), choice.take_new_token_ids(), finish)

    def _count(self, predicted: PredictionResult, taken: int | None) -> None:
        """Count draft tokens of the prediction; only those before a stop string, at `taken`."""
        limit = math.inf if taken is None else taken
        self._accepted += sum(place < limit for place in predicted.accepted)
        self._rejected += sum(rows for place, rows in predicted.rejected if place < limit)

    def _end(self, choice: _ChoiceState, delta: Delta) -> ChoiceFinishReason | None:
        """Return why a choice ends with this delta, if it does; abort after a stop string."""
        if choice.stream.stop is not None:
            if delta.finish_reason is None:
                self._pool.abort(delta.request_id, delta.index)
            return "stop"
        if delta.finish_reason is None:
            return None
        self._ended_by_token += delta.stop_token is not None
        return "stop" if delta.finish_reason == "stop" else "length"


def _check_reason(reason: FinishReason | None) -> None:
    """Raise for an end that OpenAI has no finish_reason for."""
    errors: dict[FinishReason | None, ServerError] = {
        "deadline": DeadlineExceeded("The request's deadline has passed."),
        "abort": Unavailable("The request was aborted."),
        "error": Internal("The server failed."),
    }
    if reason in errors:
        raise errors[reason]


@contextmanager
def _naming_client_fields(fields: Mapping[str, str]) -> Iterator[None]:
    """Let a BadRequest name the field that the client used."""
    try:
        yield
    except BadRequest as error:
        error.param = client_field(fields, error.param)
        raise


async def _merged(
    streams: Sequence[AsyncGenerator[Event, None]], fields: Mapping[str, str]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of all streams as they arrive, each with its stream's number.

    The first error ends them all; so does closing this.
    """
    waiting = {asyncio.ensure_future(anext(each, None)): i for i, each in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            with _naming_client_fields(fields):
                ended = sorted((waiting.pop(task), task.result()) for task in done)
            for i, event in [(i, event) for i, event in ended if event is not None]:
                waiting[asyncio.ensure_future(anext(streams[i], None))] = i
                yield i, event
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for each in streams:
            await each.aclose()


async def _single(
    stream: AsyncGenerator[Event, None], fields: Mapping[str, str]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield what `_merged` would, without a task per event."""
    async with aclosing(stream):
        with _naming_client_fields(fields):
            async for event in stream:
                yield 0, event
