"""The tokens of a model as bytes: for the matcher's mask and for counting tokens to an end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import xgrammar

MAX_TOKEN_BYTES = 64  # longer tokens are not used in closings


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to the text; b"" for special tokens, which no grammar allows.

    Logit rows may be wider than token_bytes: what lies beyond is never legal.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]

    @cached_property
    def xgrammar_info(self) -> xgrammar.TokenizerInfo:
        """The vocabulary as xgrammar wants it. Cost: about 50 ms for 49,152 tokens."""
        spelled = [b"" if i in self.eos_token_ids else t for i, t in enumerate(self.token_bytes)]
        return xgrammar.TokenizerInfo(
            spelled, xgrammar.VocabType.RAW, stop_token_ids=sorted(self.eos_token_ids)
        )

    @cached_property
    def token_of(self) -> Mapping[bytes, int]:
        """The lowest token id for each spelling that closings may use."""
        found: dict[bytes, int] = {}
        for token_id, spelling in enumerate(self.token_bytes):
            if 0 < len(spelling) <= MAX_TOKEN_BYTES and token_id not in self.eos_token_ids:
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
        """Tell whether the token spells something."""
        known = 0 <= token_id < len(self.token_bytes) and token_id not in self.eos_token_ids
        return known and bool(self.token_bytes[token_id])


def make_vocabulary(token_bytes: Iterable[bytes], eos_token_ids: Iterable[int]) -> Vocabulary:
    """Return a vocabulary that owns its tokens."""
    return Vocabulary(tuple(token_bytes), frozenset(eos_token_ids))
