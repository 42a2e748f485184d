"""The data of a tokenizer, independent of the file format, and the bytes of its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import tokenizers

from plait.server.models.hf.generation import SamplingDefaults

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"  # SentencePiece's character for a space


@dataclass(frozen=True, slots=True)
class TokenizerData:
    """One model's tokenizer: `backend` encodes, the other fields are what it doesn't know."""

    backend: tokenizers.Tokenizer  # with every special token added
    size: int  # rows of the output layer; ids beyond the backend's are padding
    token_bytes: list[bytes]  # [size]; b"" for special tokens and padding rows
    prefix: tuple[int, ...]  # token ids that plain text begins with: bos, or none
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    chat_template: str | None
    named_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token": "<s>", ...
    strips_space: bool = False  # encoding adds a space in front, which decoding removes
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)  # where none is named


def byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source: Radford et al. 2019 (GPT-2): bytes that print stand for themselves, the others
    follow from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(tokens: Iterable[str]) -> list[bytes]:
    """Return the bytes of each token of a byte-level vocabulary.

    A token with a character outside of the alphabet (an added token) stands for its own text.
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
