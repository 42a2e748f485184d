"""Drafts of the tokens that will probably follow: the contract of every drafter.

No torch at import time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol

from plait.decoders.contract.constraint import ConstraintView
from plait.decoders.contract.decoder import DecodeRequest, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that will probably follow, as a chain or as a tree.

    An acceptance probability is the probability that the target samples this token, given that it
    sampled those before it. A drafter that can't tell states 1: its acceptance is learnt.
    """

    token_ids: Sequence[int] = ()
    acceptance_probs: Sequence[float] = ()
    parents: Sequence[int] | None = None  # index of each token's parent, below its own; -1: none;
    # None for all: a chain
    can_extend: bool = True  # False: no other drafter may extend this draft


@dataclass(frozen=True, slots=True)
class DraftRequest(Generic[State]):
    """What a drafter is asked about one sequence."""

    state: State
    text: Sequence[int]  # prompt and output, not to be modified
    draft_prefix: Sequence[int]  # tokens that others have drafted; the draft follows them
    max_tokens: int  # of the draft, >= 1
    constraint: ConstraintView | None  # at the end of draft_prefix


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What a pass gave for one sequence; row 0 follows the text, row i + 1 draft token i."""

    token_ids: Sequence[int]  # [k] of the draft
    parents: Sequence[int]  # [k]
    accepted_rows: Sequence[int]  # row 0, then the rows of the accepted tokens, in text order
    drawn: Sequence[int]  # [k + 1] the token sampled at each row
    emitted: Sequence[int]  # tokens
    pass_logits: Tensor  # [rows of the pass, vocab]
    pass_hidden: Tensor | None  # [rows of the pass, hidden]
    first: int = 0  # the sequence's row 0 in the pass

    @property
    def logits(self) -> Tensor:
        """[k + 1, vocab]; a view that is made on request, because most drafters don't need it."""
        return self._own(self.pass_logits)

    @property
    def hidden(self) -> Tensor | None:
        """[k + 1, hidden]."""
        return None if self.pass_hidden is None else self._own(self.pass_hidden)

    def _own(self, rows: Tensor) -> Tensor:
        return rows[self.first : self.first + len(self.token_ids) + 1]


class Drafter(Protocol[State]):
    """Drafts tokens that will probably follow. Drafts never change a text (law 2).

    Law: what a drafter remembers of a sequence is derived from its text, as with Decoder. The
    default of `fork` and `truncate` is to build the state again; a drafter that inherits from this
    class gets it, and overrides it where that is cheaper.
    """

    name: ClassVar[str]

    def start(self, request: DecodeRequest) -> State | None:
        """Return what the drafter remembers of one sequence, whose text may have output already.

        None: it has nothing to draft from there, and is not asked again.
        """

    def fork(self, state: State, request: DecodeRequest) -> State | None:
        """Return an independent state for another text, which begins as the state's own does.

        The new text, request.text, may be shorter than the state's, and may go on otherwise.
        """
        return self.start(request)

    def truncate(self, state: State, request: DecodeRequest) -> State | None:
        """Return the state for the state's own text, which has been cut; `state` is used up."""
        self.finish(state, request.text)
        return self.start(request)

    def propose(self, requests: Sequence[DraftRequest[State]]) -> Sequence[Draft]:
        """Return a draft for each sequence; it may be empty."""

    def observe(self, state: State, text: Sequence[int], result: VerificationResult) -> None:
        """Learn from a pass; the text has the emitted tokens already."""

    def finish(self, state: State, text: Sequence[int]) -> None:
        """Release the resources of a sequence that has ended."""
