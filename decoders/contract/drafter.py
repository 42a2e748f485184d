"""What will probably come: the contract of every drafter. No torch at import time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that will probably follow, as a chain or as a tree.

    A chance is the probability that the token is what the request's law draws, given that those
    before it were. A drafter that can't tell says 1: what its drafts are worth is learnt.
    """

    token_ids: Sequence[int] = ()
    acceptance_probs: Sequence[float] = ()
    parents: Sequence[int] | None = None  # index of the token before each, below its own, -1: none
    # is; None: a chain
    can_extend: bool = True  # False: the drafter has more to say when this has come true, and until


@dataclass(frozen=True, slots=True)
class DraftRequest(Generic[State]):
    """What a drafter is asked about one sequence."""

    state: State
    text: Sequence[int]  # prompt and output, not to be modified
    draft_prefix: Sequence[int]  # drafted tokens behind it: the draft goes on from there
    max_tokens: int  # tokens that are of use, >= 1
    constraint: Constraint | None  # as it stands behind `ahead`; whoever moves it, moves it back


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What a pass said about one sequence's rows; row 0 follows the text, row i + 1 draft token i.

    The rows that were reached are those whose every token before was the one that was drawn.
    """

    token_ids: Sequence[int]  # [k] drafted
    parents: Sequence[int]  # [k]
    accepted_rows: Sequence[int]  # rows, in text order; at least row 0
    drawn: Sequence[int]  # [k + 1] what each row's law draws if it was reached
    emitted: Sequence[int]  # tokens
    pass_logits: Tensor  # [rows of the pass, vocab]
    pass_hidden: Tensor | None  # [rows of the pass, hidden]
    first: int = 0  # the sequence's row 0 in the pass

    @property
    def logits(self) -> Tensor:
        """[k + 1, vocab]. Cut out when asked for: most drafters don't look, and it takes time."""
        return self._own(self.pass_logits)

    @property
    def hidden(self) -> Tensor | None:
        """[k + 1, hidden]."""
        return None if self.pass_hidden is None else self._own(self.pass_hidden)

    def _own(self, rows: Tensor) -> Tensor:
        return rows[self.first : self.first + len(self.token_ids) + 1]


class Drafter(Protocol[State]):
    """What will probably come? Nothing that it says can change a text (law 2).

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
        return self.start(request)

    def propose(self, requests: Sequence[DraftRequest[State]]) -> Sequence[Draft]:
        """Return a draft for each sequence; an empty one says that there is nothing to say."""

    def observe(self, state: State, text: Sequence[int], result: VerificationResult) -> None:
        """Learn from a pass; the text has the emitted tokens already."""

    def finish(self, state: State, text: Sequence[int]) -> None:
        """Release the resources of a sequence that has ended."""
