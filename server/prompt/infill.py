"""One sequence's way from the tokens of a template's holes to the filled template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.stream import TextDelta, TextStream


@dataclass(frozen=True, slots=True)
class InfillTemplate:
    """A text with holes: texts[0], the first hole, texts[1], the next hole, ..., the last text."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each hole; one fewer than texts


class InfillStream:
    """Detokenises each hole by itself and puts the template's own text between them.

    Law: the pieces, joined, are the template with the k-th hole replaced by what its own tokens
    decode to. Special tokens, such as the end tokens that fill up a hole, add nothing.
    """

    stop: None = None  # no string ends it

    def __init__(self, token_bytes: Sequence[bytes], template: InfillTemplate) -> None:
        self.num_tokens = 0  # pushed
        self._token_bytes = token_bytes
        self._template = template
        self._num_chars = 0  # released
        self._index = -1  # of the hole that is being filled
        self._hole: TextStream | None = None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None
    ) -> TextDelta:
        """Take the next tokens, with their logprobs if they are to be shown."""
        pieces = [] if self._index >= 0 else [self._next_hole()]
        for i, token_id in enumerate(token_ids):
            assert self._hole is not None, "more tokens than holes"
            base = self._num_chars - self._hole.num_chars
            piece = self._hole.push([token_id], logprobs[i : i + 1] if logprobs else None)
            pieces.append(self._of_hole(piece, base))
            self.num_tokens += 1
            if self._hole.num_tokens == self._template.lengths[self._index]:
                pieces += [self._of_hole(self._hole.finish(), base), self._next_hole()]
        return _joined(pieces)

    def finish(self) -> TextDelta:
        """Return the rest; nothing, unless the sequence has ended before its last hole did."""
        pieces = []
        while self._index < len(self._template.lengths):
            if self._hole is not None:
                base = self._num_chars - self._hole.num_chars
                pieces.append(self._of_hole(self._hole.finish(), base))
            pieces.append(self._next_hole())
        return _joined(pieces)

    def _of_hole(self, piece: TextDelta, base: int) -> TextDelta:
        """Return a piece of a hole that begins after `base` characters."""
        self._num_chars += len(piece.text)
        return TextDelta(piece.text, piece.logprobs, [base + offset for offset in piece.offsets])

    def _next_hole(self) -> TextDelta:
        """Go on to the next hole; return the text before it."""
        self._index += 1
        is_last = self._index == len(self._template.lengths)
        self._hole = None if is_last else TextStream(self._token_bytes)
        text = self._template.texts[self._index]
        self._num_chars += len(text)
        return TextDelta(text)


def _joined(pieces: Sequence[TextDelta]) -> TextDelta:
    return TextDelta(
        "".join(piece.text for piece in pieces),
        [entry for piece in pieces for entry in piece.logprobs],
        [offset for piece in pieces for offset in piece.offsets],
    )
