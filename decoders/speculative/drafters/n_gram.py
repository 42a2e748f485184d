"""N-gram: what followed the last tokens when they stood in the text before (prompt lookup).

An index of hashes, extended token by token, says where each run of n tokens last ended. The longest
run in [min_n, max_n] that has occurred before is followed; the most recent occurrence wins.

Law: none of its own; verified as every draft. Cost: O(max_n - min_n) a token of the text.
Source: Saxena 2023, prompt lookup decoding; vLLM's method ngram. Departs from it where it scans the
text anew at every step, and where it takes the earliest occurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field, model_validator

from plait.decoders.protocol import Ask, DecodeRequest, Draft, Verdict
from plait.decoders.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.workshop import Workshop


class NGramOptions(DraftOptions):
    """Lengths of the runs that are looked up."""

    min_n: int = Field(2, ge=1, le=32, description="Tokens that must match, at least.")
    max_n: int = Field(5, ge=1, le=32, description="Tokens that may match, at most.")

    @model_validator(mode="after")
    def _ordered(self) -> NGramOptions:
        if self.min_n > self.max_n:
            raise ValueError("min_n is larger than max_n")
        return self


@dataclass(slots=True)
class Index:
    """Where runs of one text's tokens last ended."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)  # run -> index behind its last
    length: int = 0  # tokens of the text that are indexed


class NGram:
    """Looks the end of each text up in the text itself."""

    name: ClassVar[str] = "n-gram"

    def __init__(self, options: NGramOptions) -> None:
        self._sizes = range(options.max_n, options.min_n - 1, -1)

    def start(self, request: DecodeRequest) -> Index:
        """Index nothing yet: the prompt is read when the first draft is asked for."""
        return Index()

    def propose(self, asks: Sequence[Ask[Index]]) -> Sequence[Draft]:
        """Return what followed the last tokens before."""
        return [self._draft(ask) for ask in asks]

    def commit(self, state: Index, text: Sequence[int], verdict: Verdict) -> None:
        """Learn nothing: the text itself is the store."""

    def finish(self, state: Index, text: Sequence[int]) -> None:
        """Hold nothing."""

    def _draft(self, ask: Ask[Index]) -> Draft:
        text = ask.text
        self._extend(ask.state, text)
        tail = [*text[-self._sizes.start :], *ask.ahead]
        for size in self._sizes:
            if len(tail) < size:
                continue
            at = ask.state.ends.get(tuple(tail[len(tail) - size :]))
            if at is not None:
                tokens = text[at : at + ask.limit]
                chance = size / (size + 1)
                return Draft(tokens, [chance] * len(tokens))
        return Draft()

    def _extend(self, index: Index, text: Sequence[int]) -> None:
        """Index the runs that end before the text's last token, which nothing follows yet."""
        for stop in range(max(index.length, 1), len(text)):
            for size in self._sizes:
                if size <= stop:
                    index.ends[tuple(text[stop - size : stop])] = stop
        index.length = len(text)


def make(options: NGramOptions, *, workshop: Workshop) -> NGram:
    """Build the drafter."""
    return NGram(options)


METHOD = Method(
    kind="drafter",
    name="n-gram",
    summary="What followed the last tokens when they stood in the text before.",
    source="Saxena 2023, prompt lookup decoding",
    target="plait.decoders.speculative.drafters.n_gram:make",
    options=NGramOptions,
    replays=True,
    presets={"vllm": {"min_n": 5, "max_n": 5}},
)
