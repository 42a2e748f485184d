"""One sequence's way from token ids to the text, and the logprobs, that the client sees."""

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
    """What may be sent now; joined over a stream it is the answer."""

    text: str
    logprobs: Sequence[TokenLogprobs] = ()  # of the tokens whose text is out, when there are any
    offsets: Sequence[int] = ()  # where in the text each of those tokens begins


class _PendingToken(NamedTuple):
    """A token whose text is not all out; characters count from the start of the text."""

    logprob: TokenLogprobs
    start: int
    end: int


class TextStream:
    """Detokenises, looks for stop strings, and hands out each token's logprobs with its text.

    A token belongs to the answer if it begins before the answer's end, so a token that runs into
    a stop string still counts and one wholly within does not.
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
        self._decoded = 0  # characters, released or held
        self._held: deque[_PendingToken] = deque()

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the text; what is pushed afterwards is ignored."""
        return self._scanner.matched if self._scanner is not None else None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None
    ) -> TextDelta:
        """Take the next tokens, with their logprobs if they are to be shown.

        Check `stop` afterwards: if it is set, the piece is the last one.
        """
        released = []
        for i, token_id in enumerate(token_ids):
            if self.stop is not None:
                break
            released.append(self._take(token_id, logprobs[i] if logprobs else None))
        return self._piece("".join(released))

    def finish(self) -> TextDelta:
        """Return the rest, once the sequence has ended; empty if a stop string ended it."""
        if self.stop is not None:
            return TextDelta("")
        tail = self._detokenizer.finish()
        self._decoded += len(tail)
        if self._scanner is not None:
            tail = self._scanner.push(tail) + self._scanner.finish()
        return self._piece(tail, last=True)

    def _take(self, token_id: int, logprob: TokenLogprobs | None) -> str:
        text = self._detokenizer.push(token_id)
        start = self._decoded
        self._decoded += len(text)
        self.num_tokens += 1
        if logprob is not None:
            end = self._decoded + self._detokenizer.has_partial_character
            self._held.append(_PendingToken(logprob, start, end))
        return text if self._scanner is None else self._scanner.push(text)

    def _piece(self, text: str, *, last: bool = False) -> TextDelta:
        self.num_chars += len(text)
        last = last or self.stop is not None
        out: list[_PendingToken] = []
        while self._held and self._is_out(self._held[0], last):
            out.append(self._held.popleft())
        return TextDelta(text, [token.logprob for token in out], [token.start for token in out])

    def _is_out(self, token: _PendingToken, last: bool) -> bool:
        if self.stop is not None:
            return token.start < self.num_chars
        return last or token.end <= self.num_chars
