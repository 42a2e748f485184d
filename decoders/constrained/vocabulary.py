"""The vocabulary of a model as bytes: masks have one bit for each of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from plait.decoders.constrained.spec import AllowedTokens
from plait.kernels.grammar import SHARED_BYTES
from plait.kernels.grammar import make_vocabulary as make_handle

MAX_TOKEN_BYTES = 32  # longest token that a constrained text may use


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of each token; b"" for special tokens, which no grammar allows.

    Tokens of more than MAX_TOKEN_BYTES (long runs of blanks or dashes) are never legal either, and
    logit rows may be wider than token_bytes: what lies beyond is not legal.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]
    shared_bytes: int = SHARED_BYTES  # of masks kept for several grammars, see make_handle

    @cached_property
    def handle(self) -> Any:
        """The vocabulary object for automata. Cost: about 50 ms for 49,152 tokens."""
        spelled = [t if self.is_text(i) else b"" for i, t in enumerate(self.token_bytes)]
        return make_handle(spelled, self.shared_bytes)

    @cached_property
    def token_of(self) -> Mapping[bytes, int]:
        """The lowest token id for each spelling of a constrained text."""
        found: dict[bytes, int] = {}
        for token_id, spelling in enumerate(self.token_bytes):
            if self.is_text(token_id):
                found.setdefault(spelling, token_id)
        return found

    @cached_property
    def by_length(self) -> Sequence[int]:
        """The tokens of constrained texts but for blanks, short ones first, then letters."""
        text = self.token_bytes
        found = (i for i in range(len(text)) if self.is_text(i) and not text[i].isspace())
        return sorted(found, key=lambda i: (len(text[i]), not text[i].isalnum()))

    def is_text(self, token_id: int) -> bool:
        """Return whether a constrained text may contain the token."""
        if token_id in self.eos_token_ids or not 0 <= token_id < len(self.token_bytes):
            return False
        return 0 < len(self.token_bytes[token_id]) <= MAX_TOKEN_BYTES

    def restricted(self, tokens: AllowedTokens) -> Vocabulary:
        """Return the vocabulary with b"" for all tokens that are not allowed."""
        spelled = tuple(text if i in tokens else b"" for i, text in enumerate(self.token_bytes))
        return Vocabulary(spelled, self.eos_token_ids, shared_bytes=0)

    def prepare(self) -> None:
        """Build the handle now, not during the first request."""
        assert self.handle is not None


def make_vocabulary(token_bytes: Iterable[bytes], eos_token_ids: Iterable[int]) -> Vocabulary:
    """Return a vocabulary that owns its tokens."""
    return Vocabulary(tuple(token_bytes), frozenset(eos_token_ids))
