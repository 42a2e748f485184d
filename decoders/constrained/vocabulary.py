"""The tokens of a model as bytes: for the matcher's mask and for counting tokens to an end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xgrammar
from numpy.typing import NDArray

from plait.decoders.constrained.grammar.for_matcher import MAX_TOKEN_BYTES


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to the text; b"" for special tokens, which no grammar allows.

    Tokens of more than MAX_TOKEN_BYTES (long runs of blanks or dashes) are never legal either, and
    logit rows may be wider than token_bytes: what lies beyond is not legal.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]

    @cached_property
    def xgrammar_info(self) -> xgrammar.TokenizerInfo:
        """The vocabulary as xgrammar wants it. Cost: about 50 ms for 49,152 tokens."""
        spelled = [t if self.is_text(i) else b"" for i, t in enumerate(self.token_bytes)]
        return xgrammar.TokenizerInfo(
            spelled, xgrammar.VocabType.RAW, stop_token_ids=sorted(self.eos_token_ids)
        )

    @cached_property
    def token_of(self) -> Mapping[bytes, int]:
        """The lowest token id for each spelling that closings may use."""
        found: dict[bytes, int] = {}
        for token_id, spelling in enumerate(self.token_bytes):
            if self.is_text(token_id):
                found.setdefault(spelling, token_id)
        return found

    @cached_property
    def lengths_from(self) -> Mapping[int, tuple[int, ...]]:
        """For each first byte the lengths of the tokens that begin with it, ascending."""
        lengths: dict[int, set[int]] = {}
        for spelling in self.token_of:
            lengths.setdefault(spelling[0], set()).add(len(spelling))
        return {first: tuple(sorted(found)) for first, found in lengths.items()}

    def is_text(self, token_id: int) -> bool:
        """Tell whether the token spells something that a constrained text may hold."""
        if token_id in self.eos_token_ids or not 0 <= token_id < len(self.token_bytes):
            return False
        return 0 < len(self.token_bytes[token_id]) <= MAX_TOKEN_BYTES

    @cached_property
    def in_order(self) -> tuple[list[bytes], NDArray[np.int64]]:
        """The spellings in the order of their bytes, and the token of each."""
        ids = [i for i in range(len(self.token_bytes)) if self.is_text(i)]
        ids.sort(key=lambda i: self.token_bytes[i])
        return [self.token_bytes[i] for i in ids], np.array(ids, np.int64)

    def outgrows(self, text: bytes) -> bool:
        """Tell whether some token begins with the text and goes on. Cost: a binary search."""
        spellings, _ = self.in_order
        following = bisect_right(spellings, text)
        return following < len(spellings) and spellings[following].startswith(text)

    def prepare(self) -> None:
        """Compute now what would otherwise be computed in the middle of a request."""
        assert self.xgrammar_info is not None
        assert self.lengths_from is not None and self.in_order is not None

    @cached_property
    def last_word(self) -> int:
        """The bits of a row's last word that stand for tokens, as a signed 32-bit integer."""
        return int(self.bits(np.arange(len(self.token_bytes)))[-1])

    def bits(self, token_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return a bitmask row [words] int32 in which these tokens' bits are set."""
        flags = np.zeros(-(-len(self.token_bytes) // 32) * 32, np.uint8)
        flags[token_ids] = 1
        return np.packbits(flags, bitorder="little").view(np.int32)


def make_vocabulary(token_bytes: Iterable[bytes], eos_token_ids: Iterable[int]) -> Vocabulary:
    """Return a vocabulary that owns its tokens."""
    return Vocabulary(tuple(token_bytes), frozenset(eos_token_ids))
