"""What a tokenizer is made of, however the model's files write it down, and its tokens' bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import tokenizers

from plait.server.models.hf.generation import SamplingDefaults

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"  # SentencePiece writes a space as this sign


@dataclass(frozen=True, slots=True)
class TokenizerData:
    """One model's tokenizer; `backend` does the encoding, the rest is what it cannot tell."""

    backend: tokenizers.Tokenizer  # with every special token added
    size: int  # rows of the model's output; ids beyond the backend's mean nothing
    token_bytes: list[bytes]  # [size]; b"" for special tokens and padding rows
    prefix: tuple[int, ...]  # what the model wants in front of plain text: bos, or nothing
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    chat_template: str | None
    named_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token": "<s>", ...
    strips_space: bool = False  # the encoding starts with a space that is not in the text
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)  # of silent requests


def byte_level_alphabet() -> dict[str, int]:
    """Return which byte each printable stand-in of a byte-level vocabulary means.

    Source: Radford et al. 2019 (GPT-2): bytes that print stand for themselves, the others
    follow from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(tokens: Iterable[str]) -> list[bytes]:
    """Return the bytes of each token of a byte-level vocabulary.

    A token with a character outside the alphabet (an added token) stands for its own text.
    """
    alphabet = byte_level_alphabet()

    def spell(token: str) -> bytes:
        try:
            return bytes([alphabet[char] for char in token])
        except KeyError:
            return token.encode()

    return [spell(token) for token in tokens]


def byte_fallback_bytes(tokens: Iterable[str]) -> list[bytes]:
    """Return the bytes of each token of a SentencePiece vocabulary with <0x..> byte tokens."""

    def spell(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()

    return [spell(token) for token in tokens]
