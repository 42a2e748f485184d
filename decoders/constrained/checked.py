"""A constraint with checks beside it, or checks alone: each token is tried on the text."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plait.decoders.contract.check import Check, TextVerdict
from plait.decoders.contract.constraint import Constraint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SpelledTokens:
    """What tokens add to a text, and which of them end it."""

    token_bytes: Sequence[bytes]  # those of special tokens are empty
    end_ids: Collection[int]

    def __getitem__(self, token_id: int) -> bytes:
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""


class CheckedConstraint:
    """A `plait.decoders.contract.constraint.Constraint`: checks, and another constraint or none.

    Law: a token is accepted exactly if the other constraint accepts it and no check calls the text
    dead; a token that ends the text, if every check calls it complete. Ends are those of the other
    constraint, and may be refused: a text can come to a dead end.
    """

    is_exact: ClassVar[bool] = False

    def __init__(
        self, checks: Sequence[Check], tokens: SpelledTokens, inner: Constraint | None = None
    ) -> None:
        """Take checks and a constraint that has accepted nothing yet."""
        self._checks = checks
        self._tokens = tokens
        self._inner = inner
        self._text = bytearray()
        self._lengths = [0]  # of the text, one more than tokens

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Write what the other constraint allows; without one all tokens are allowed."""
        return self._inner is not None and self._inner.fill_bitmask(bitmask, row)

    def accept_token(self, token_id: int) -> bool:
        """Advance; False (and unchanged) if the token is refused."""
        if self._inner is not None and not self._inner.accept_token(token_id):
            return False
        self._text += self._tokens[token_id]
        self._lengths.append(len(self._text))
        verdicts = self._verdicts()
        is_end = token_id in self._tokens.end_ids
        if "dead" in verdicts or (is_end and verdicts - {"complete"}):
            self.rollback(1)
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        if num_tokens > 0:
            if self._inner is not None:
                self._inner.rollback(num_tokens)
            del self._lengths[-num_tokens:]
            del self._text[self._lengths[-1] :]

    def fork(self) -> CheckedConstraint:
        """Return an independent copy; checks remember nothing, and are shared."""
        inner = None if self._inner is None else self._inner.fork()
        copy = CheckedConstraint(self._checks, self._tokens, inner)
        copy._text = self._text.copy()
        copy._lengths = self._lengths.copy()
        return copy

    def is_accepting(self) -> bool:
        """Return whether the text so far is complete."""
        is_whole = self._inner is None or self._inner.is_accepting()
        return is_whole and self._verdicts() == {"complete"}

    def is_terminated(self) -> bool:
        """Return whether only the end of the text can follow."""
        return self._inner is not None and self._inner.is_terminated() and self.is_accepting()

    def min_tokens(self) -> int:
        """Return the other constraint's; without one, 0: nothing is known of ends."""
        return 0 if self._inner is None else self._inner.min_tokens()

    def closing_tokens(self) -> Sequence[int]:
        """Return the other constraint's; they may be refused."""
        return () if self._inner is None else self._inner.closing_tokens()

    def forced_tokens(self) -> Sequence[int]:
        """Return the other constraint's."""
        return () if self._inner is None else self._inner.forced_tokens()

    def boundary_tokens(self) -> Sequence[int]:
        """Return the other constraint's."""
        return () if self._inner is None else self._inner.boundary_tokens()

    def _verdicts(self) -> set[TextVerdict]:
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self._text))
        return {check.verdict(text) for check in self._checks}
