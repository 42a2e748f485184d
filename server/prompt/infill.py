"""From the token ids of an infill template's holes to the filled text, incrementally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.stream import TextDelta, TextStream


@dataclass(frozen=True, slots=True)
class InfillTemplate:
    """A text with holes: texts[0], hole 0, texts[1], hole 1, ..., texts[-1]."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each hole; one fewer than texts


class InfillStream:
    """Detokenizes each hole separately and inserts the template's text between them.

    Law: the deltas, joined, are the template with hole k replaced by the text of its own tokens.
    Special tokens, such as the end tokens that fill up a hole, have no text.
    """

    stop: None = None  # stop strings do not apply

    def __init__(self, token_bytes: Sequence[bytes], template: InfillTemplate) -> None:
        self.num_tokens = 0  # pushed
        self._token_bytes = token_bytes
        self._template = template
        self._num_chars = 0  # released
        self._index = -1  # of the current hole
        self._hole: TextStream | None = None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None
    ) -> TextDelta:
        """Add tokens, with their logprobs if requested; return the new text."""
        deltas = [] if self._index >= 0 else [self._next_hole()]
        for i, token_id in enumerate(token_ids):
            assert self._hole is not None, "more tokens than holes"
            base = self._num_chars - self._hole.num_chars
            delta = self._hole.push([token_id], logprobs[i : i + 1] if logprobs else None)
            deltas.append(self._of_hole(delta, base))
            self.num_tokens += 1
            if self._hole.num_tokens == self._template.lengths[self._index]:
                deltas += [self._of_hole(self._hole.finish(), base), self._next_hole()]
        return _joined(deltas)

    def finish(self) -> TextDelta:
        """Return the rest of the template, if the sequence has ended before its last hole."""
        deltas = []
        while self._index < len(self._template.lengths):
            if self._hole is not None:
                base = self._num_chars - self._hole.num_chars
                deltas.append(self._of_hole(self._hole.finish(), base))
            deltas.append(self._next_hole())
        return _joined(deltas)

    def _of_hole(self, delta: TextDelta, base: int) -> TextDelta:
        """Return new text of a hole that begins after `base` characters."""
        self._num_chars += len(delta.text)
        return TextDelta(delta.text, delta.logprobs, [base + offset for offset in delta.offsets])

    def _next_hole(self) -> TextDelta:
        """Start the next hole; return the template's text before it."""
        self._index += 1
        is_last = self._index == len(self._template.lengths)
        self._hole = None if is_last else TextStream(self._token_bytes)
        text = self._template.texts[self._index]
        self._num_chars += len(text)
        return TextDelta(text)


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    return TextDelta(
        "".join(delta.text for delta in deltas),
        [entry for delta in deltas for entry in delta.logprobs],
        [offset for delta in deltas for offset in delta.offsets],
    )
