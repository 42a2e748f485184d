"""From one sequence's token ids to its text and logprobs, incrementally."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.detokenizer import Detokenizer
from plait.server.prompt.stop import StopScanner, StopStrings


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text that can be sent. Joined over a stream, the deltas are the output."""

    text: str
    logprobs: Sequence[TokenLogprobs] = ()  # of the tokens whose text is complete, if requested
    offsets: Sequence[int] = ()  # where each of those tokens begins in the text


class _PendingToken(NamedTuple):
    """A token whose text is not all released. Positions are characters of the whole text."""

    logprob: TokenLogprobs
    start: int
    end: int


class TextStream:
    """Detokenizes, finds stop strings, and returns each token's logprobs with its text.

    A token belongs to the output if it begins before the output's end: a token that runs into a
    stop string counts, a token wholly within the stop string does not.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stop: StopStrings | None = None,
        *,
        include_stop: bool = False,
    ) -> None:
        self.num_tokens = 0  # pushed, up to the one that completed a stop string
        self.num_chars = 0  # released
        self._detokenizer = Detokenizer(token_bytes)
        self._scanner = StopScanner(stop, include=include_stop) if stop is not None else None
        self._decoded = 0  # characters, released or withheld
        self._pending: deque[_PendingToken] = deque()

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text; tokens pushed after it are ignored."""
        return self._scanner.matched if self._scanner is not None else None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None
    ) -> TextDelta:
        """Add tokens, with their logprobs if requested; return the text that is released.

        Check `stop` afterwards: if it is set, this is the last text.
        """
        released = []
        for i, token_id in enumerate(token_ids):
            if self.stop is not None:
                break
            released.append(self._take(token_id, logprobs[i] if logprobs else None))
        return self._released("".join(released))

    def finish(self) -> TextDelta:
        """Return the withheld rest when the sequence has ended; empty after a stop string."""
        if self.stop is not None:
            return TextDelta("")
        tail = self._detokenizer.finish()
        self._decoded += len(tail)
        if self._scanner is not None:
            tail = self._scanner.push(tail) + self._scanner.finish()
        return self._released(tail, last=True)

    def _take(self, token_id: int, logprob: TokenLogprobs | None) -> str:
        text = self._detokenizer.push(token_id)
        start = self._decoded
        self._decoded += len(text)
        self.num_tokens += 1
        if logprob is not None:
            end = self._decoded + self._detokenizer.has_partial_character
            self._pending.append(_PendingToken(logprob, start, end))
        return text if self._scanner is None else self._scanner.push(text)

    def _released(self, text: str, *, last: bool = False) -> TextDelta:
        self.num_chars += len(text)
        last = last or self.stop is not None
        out: list[_PendingToken] = []
        while self._pending and self._is_released(self._pending[0], last):
            out.append(self._pending.popleft())
        return TextDelta(text, [token.logprob for token in out], [token.start for token in out])

    def _is_released(self, token: _PendingToken, last: bool) -> bool:
        if self.stop is not None:
            return token.start < self.num_chars
        return last or token.end <= self.num_chars
