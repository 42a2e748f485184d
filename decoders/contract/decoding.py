"""The methods that a request is decoded with: resolved, validated, and ready to travel (msgspec).

The front end makes them once from the request's `decoding` object (plait.decoders.resolve). Workers
load what they get; they validate no option again. No torch.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class MethodSpec(msgspec.Struct, frozen=True):
    """One method of the registry by its public id, with its validated options."""

    name: str
    options: dict[str, Any] = {}  # JSON values; only those that differ from the method's defaults


class AutoregressiveMethods(msgspec.Struct, frozen=True, tag="autoregressive"):
    """How a model that writes one token after the other is decoded."""

    sampler: MethodSpec
    drafters: tuple[MethodSpec, ...] = ()  # in the order in which they draft


class DiffusionMethods(msgspec.Struct, frozen=True, tag="diffusion"):
    """How a diffusion model is decoded."""

    unmasker: tuple[MethodSpec, ...]  # one method for each part of a step that is named
    attention: Literal["block", "full"]
    block_size: int


Methods = AutoregressiveMethods | DiffusionMethods


class DecodingSpec(msgspec.Struct, frozen=True):
    """All that a request says of decoding."""

    methods: Methods | None = None  # None: the decoder's own defaults
    search: MethodSpec | None = None  # None: independent sequences
    scorers: tuple[MethodSpec, ...] = ()  # whose weighted scores the search gets as a sum
    checks: tuple[MethodSpec, ...] = ()  # that the text must pass
    trace: bool = False  # report what the decoder did, as the `decoding` object of docs/api.md


class PromptExtras(msgspec.Struct, frozen=True):
    """What a request gives beside the prompt that it continues."""

    prediction_token_ids: list[int] = []  # the output that the client expects
    suffix_token_ids: list[int] = []  # text behind the output
    holes: list[tuple[int, int]] = []  # [start, stop) of each span of the prompt to be filled
    continuations: list[list[int]] = []  # to be scored; none of them is empty
    wants_hidden: bool = False  # tell the hidden state behind the prompt

    @property
    def writes_nothing(self) -> bool:
        """Whether the model is asked what it makes of a prompt, and not for a text."""
        return bool(self.continuations) or self.wants_hidden

    @property
    def num_continuation_rows(self) -> int:
        """Rows that the continuations need in a pass, at most."""
        return sum([len(each) - 1 for each in self.continuations])

    @property
    def infill_field(self) -> str | None:
        """The request field that asks for text between text, if one does."""
        if self.suffix_token_ids:
            return "suffix"
        return "infill" if self.holes else None


NO_EXTRAS = PromptExtras()
