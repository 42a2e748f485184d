"""A streaming client that times what a user sees and costs little of the machine it measures.

Token counts come from the server's own usage, so a chunk that carries several tokens counts right.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class ServerFault(RuntimeError):
    """The server answered with an error.

    Within a stream its status is what the error says of itself, or 200.
    """

    def __init__(self, message: str, status: int = httpx.codes.OK) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer; instants are time.perf_counter() seconds."""

    sent: float
    first: float  # the first chunk with text
    last: float  # the last one
    ended: float
    text: str
    prompt_tokens: int
    tokens: int
    decoding: dict[str, Any] = field(default_factory=dict)  # the trace, if one was asked for
    finish_reason: str = ""

    @property
    def ttft_ms(self) -> float:
        """Milliseconds from sending the request to the first text."""
        return 1e3 * (self.first - self.sent)

    @property
    def tokens_after_first(self) -> int:
        """Tokens behind the first chunk: it holds those of the first pass, one without a trace."""
        return self.tokens - max(list(self.decoding.get("steps", ())).count(1), 1)

    @property
    def decode_rate(self) -> float:
        """Tokens per second behind the first chunk; 0 for an answer of one chunk."""
        span = self.last - self.first
        return self.tokens_after_first / span if span > 0 else 0.0


@dataclass(slots=True)
class _Stream:
    """What has been seen of one answer."""

    first: float = 0.0
    last: float = 0.0
    pieces: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = ""

    def take(self, chunk: dict[str, Any]) -> None:
        if error := chunk.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise ServerFault(str(error), code if isinstance(code, int) else httpx.codes.OK)
        if usage := chunk.get("usage"):
            self.usage = usage
        self.decoding = chunk.get("decoding") or self.decoding
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if text := choice["delta"].get("content"):
                self.last = time.perf_counter()
                self.first = self.first or self.last
                self.pieces.append(text)


async def ask(
    client: httpx.AsyncClient,
    model: str,
    messages: list[dict[str, str]],
    max_tokens: int,
    **extra: Any,
) -> Answer:
    """Stream one chat completion, greedy unless `extra` says otherwise.

    Raises:
        ServerFault: any status but 200, or an error in the middle of the stream.
    """
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        **extra,
    }
    stream, sent = _Stream(), time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            text = (await response.aread())[:500]
            raise ServerFault(f"{response.status_code}: {text!r}", response.status_code)
        async for chunk in _events(response):
            stream.take(chunk)
    ended = time.perf_counter()
    return Answer(
        sent=sent,
        first=stream.first or ended,
        last=stream.last or ended,
        ended=ended,
        text="".join(stream.pieces),
        prompt_tokens=stream.usage["prompt_tokens"],
        tokens=stream.usage["completion_tokens"],
        decoding=stream.decoding,
        finish_reason=stream.finish_reason,
    )


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of every `data:` line."""
    rest = b""
    async for piece in response.aiter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield orjson.loads(line[6:])


def connect(base_url: str) -> httpx.AsyncClient:
    """Return a client with a connection per request: some servers close idle ones unannounced."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT, limits=limits)
