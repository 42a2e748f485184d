"""A lower bound of a text's token count without tokenizing, to reject long texts cheaply.

A token has a maximum number of bytes, so a text has at least bytes / maximum tokens. Three things
can shrink a text before that: normalizers (by a known factor), added tokens (they absorb spaces),
and bytes that the vocabulary lacks (SmolLM2's has no 0x04), which are dropped. Where other text can
be dropped, the bound is 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from plait.server.prompt.tokenizer_data import byte_level_alphabet

# Most bytes before normalization for one byte after it; tests try every character.
SHRINKS = {"NFC": 3, "NFD": 3, "NFKC": 4, "NFKD": 4, "Prepend": 1}
NOT_IN_UTF8 = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
LOSSLESS = frozenset({"ByteLevel", "Digits", "Metaspace"})  # pre-tokenizers that drop nothing


@dataclass(frozen=True, slots=True)
class TokenCountBound:
    """The bound of one tokenizer."""

    bytes_per_token: int | None  # at most; None: no bound
    dropped: bytes = b""  # bytes that no token has; they are dropped
    drops_blanks: bool = False  # an added token absorbs the spaces around it

    def min_token_count(self, text: str) -> int:
        """Return a lower bound of the text's token count. Cost: that of encoding to UTF-8."""
        if self.bytes_per_token is None:
            return 0
        if self.drops_blanks:
            text = "".join(text.split())
        if self.dropped:
            size = len(text.encode(errors="surrogatepass").translate(None, self.dropped))
        else:
            size = count_bytes(text)
        return -(-size // self.bytes_per_token)


def token_count_bound(
    backend: tokenizers.Tokenizer, token_bytes: Sequence[bytes]
) -> TokenCountBound:
    """Return the bound of a tokenizer whose tokens have these bytes."""
    description = json.loads(backend.to_str())
    normalizer = description["normalizer"]
    shrink = _shrink(normalizer)
    dropped = _unspelled(description)
    if shrink is None or dropped is None or not _keeps_text(description["pre_tokenizer"]):
        return TokenCountBound(None)
    if dropped and normalizer is not None:  # it may turn other bytes into these
        return TokenCountBound(None)
    added = list(backend.get_added_tokens_decoder().values())
    spelled = (*token_bytes, *(token.content.encode() for token in added))
    longest = max(map(len, spelled), default=1)
    return TokenCountBound(longest * shrink, dropped, any(t.lstrip or t.rstrip for t in added))


def count_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _shrink(normalizer: Mapping[str, Any] | None) -> int | None:
    if normalizer is None:
        return 1
    if normalizer["type"] == "Sequence":
        return _product(_shrink(each) for each in normalizer["normalizers"])
    if normalizer["type"] == "Replace":
        old, new = normalizer["pattern"].get("String"), normalizer["content"]
        return max(-(-len(old.encode()) // len(new.encode())), 1) if old and new else None
    return SHRINKS.get(normalizer["type"])


def _product(factors: Iterable[int | None]) -> int | None:
    product = 1
    for factor in factors:
        if factor is None:
            return None
        product *= factor
    return product


def _keeps_text(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(_keeps_text(each) for each in pre_tokenizer["pretokenizers"])
    if kind in ("Split", "Punctuation"):
        return bool(pre_tokenizer["behavior"] != "Removed")
    return kind in LOSSLESS


def _unspelled(description: Mapping[str, Any]) -> bytes | None:
    """Return the bytes that the vocabulary lacks; None: whole characters may be dropped."""
    model = description["model"]
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        return None
    if model.get("byte_fallback"):
        has_all = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        return b"" if has_all else None
    if '"ByteLevel"' not in json.dumps(description["pre_tokenizer"]):
        return None
    alphabet = byte_level_alphabet().items()
    missing = bytes(byte for letter, byte in alphabet if letter not in vocabulary)
    return missing.translate(None, NOT_IN_UTF8)
