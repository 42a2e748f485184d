"""Prediction: the answer that the client expects (OpenAI's `prediction`), followed through edits.

A pointer walks along the prediction as long as the answer does. Where they differ, the longest run
of the answer's last tokens, max_n at most, is looked up in the prediction, and the walk goes on
behind it. Of several such places the nearest behind the last one where the answer was surely on
track is taken, else the last of all: what was deleted is skipped, what was inserted is waited for.
A token that stands nowhere in the prediction is taken, once, to replace the one that was predicted.
A draft is at most twice as long as what has ever agreed in a row, and two tokens; an answer that
begins otherwise must have agreed somewhere in SURE tokens, or a common word would be taken for a
sign, in the place of better drafts. So a prediction that is wrong altogether costs a few rows.
While the answer follows the prediction nobody else drafts behind it: either it has more to say, or
it is at its end, and so should the answer be.

Law: none of its own; verified as every draft. Cost: O(max_n log tokens) a token that differs; 12
bytes times max_n a predicted token, and a set of them, once for all sequences of a request.
Source: OpenAI's predicted outputs, which say what goes in and what is counted, not how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import MAX_DRAFT, PREDICTION, DraftOptions
from plait.decoders.speculative.context import DrafterContext

MULTIPLIER = 0x9E3779B97F4A7C15
MASK64 = 2**64 - 1
MIN_AGREED = 3  # tokens that agree before a place counts as the right one
GROWTH = 2  # tokens of a draft for each that has agreed in a row, and for one more
LOST = -1


class PredictionOptions(DraftOptions):
    """How a place in the prediction is found again."""

    max_draft: int = Field(
        MAX_DRAFT, ge=1, le=MAX_DRAFT, description="Tokens of one draft, at most."
    )
    max_n: int = Field(4, ge=1, le=16, description="Tokens that are looked up, at most.")


class PredictionIndex:
    """One prediction, and where in it each run of 1 to max_n tokens ends.

    Runs are known by a hash; two that share one by chance cost a wrong draft.
    """

    def __init__(self, token_ids: Sequence[int], max_n: int) -> None:
        self.token_ids = token_ids
        self.max_n = max_n
        self._followed = frozenset(token_ids[:-1])
        ids = np.asarray(token_ids, dtype=np.uint64) + np.uint64(1)
        last = len(ids)  # a run that ends there has nothing behind it
        hashes = np.zeros(last, dtype=np.uint64)  # of the run that begins at each token
        self._runs = []
        for size in range(1, max_n + 1):
            count = max(last - size, 0)
            hashes = hashes[:count] * np.uint64(MULTIPLIER) + ids[size - 1 : size - 1 + count]
            order = np.argsort(hashes, kind="stable")
            self._runs.append((hashes[order], (order + size).astype(np.int32)))

    def find(self, tail: Sequence[int], home: int) -> tuple[int, int] | None:
        """Return where a tail's longest known run ends, and its length.

        Of several places the first behind `home`; if all are before it, the last.
        """
        if not tail or tail[-1] not in self._followed:  # most tokens, where all is wrong
            return None
        longest: tuple[NDArray[np.int32], int] | None = None
        for size in range(1, min(self.max_n, len(tail)) + 1):
            hashes, ends = self._runs[size - 1]
            key = np.uint64(_hash(tail[len(tail) - size :]))
            first = int(hashes.searchsorted(key))
            if first == len(hashes) or hashes[first] != key:  # nor is there a longer one
                break
            longest = ends[first : int(hashes.searchsorted(key, "right"))], size
        if longest is None:
            return None
        places, size = longest
        behind = int(places.searchsorted(home, "right"))
        return int(places[min(behind, len(places) - 1)]), size


@dataclass(frozen=True, slots=True)
class PredictionCursor:
    """Where an answer stands in its prediction."""

    at: int = 0  # index of the predicted token that is due
    run: int = 1  # tokens that have agreed since it was found; LOST: none is due
    home: int = 0  # where the answer was last surely on track
    best: int = 1  # the longest run so far


@dataclass(slots=True)
class PredictionState:
    """What is remembered of one sequence."""

    anchors: PredictionIndex | None  # None once the sequence has ended
    read: int  # tokens of the text that the cursor knows
    cursor: PredictionCursor = PredictionCursor()


class PredictionDrafter:
    """Follows each answer through its own prediction."""

    name: ClassVar[str] = "prediction"

    def __init__(self, options: PredictionOptions) -> None:
        self._max_n = options.max_n
        self._known: WeakValueDictionary[tuple[int, ...], PredictionIndex] = WeakValueDictionary()

    def start(self, request: DecodeRequest) -> PredictionState | None:
        """Begin at the prediction's start, which siblings share."""
        token_ids = tuple(request.options.get(PREDICTION, ()))
        if not token_ids:
            return None
        anchors = self._known.get(token_ids)
        if anchors is None:
            anchors = self._known[token_ids] = PredictionIndex(token_ids, self._max_n)
        return PredictionState(anchors, len(request.prompt_token_ids))

    def propose(self, requests: Sequence[DraftRequest[PredictionState]]) -> Sequence[Draft]:
        """Return what the predictions go on with."""
        return [self._draft(request) for request in requests]

    def commit(
        self, state: PredictionState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Walk on when the next draft is asked for, whoever has drafted what was emitted."""

    def finish(self, state: PredictionState, text: Sequence[int]) -> None:
        """Let go of the prediction, which nobody needs when all its sequences have ended."""
        state.anchors = None

    def _draft(self, request: DraftRequest[PredictionState]) -> Draft:
        state, text, anchors = request.state, request.text, request.state.anchors
        if anchors is None:
            return Draft()
        before = text[max(state.read - self._max_n, 0) : state.read]
        known = _advance_cursor(anchors, state.cursor, before, text[state.read :])
        state.cursor, state.read = known, len(text)
        cursor = _advance_cursor(anchors, known, text[-self._max_n :], request.draft_prefix)
        if cursor.run == LOST:
            return Draft()
        hoped = min(
            cursor.run, len(request.draft_prefix)
        )  # tokens that agree, but are drafts themselves
        agreed = max(known.best, cursor.run - hoped)
        begins = cursor.run == cursor.at + 1  # has agreed from the first token on
        if not (begins or agreed >= MIN_AGREED):
            return Draft()
        max_tokens = min(request.max_tokens, GROWTH * (agreed + 1) - hoped)
        tokens = anchors.token_ids[cursor.at : cursor.at + max(max_tokens, 0)]
        acceptance_probs = [_match_prob(cursor.run + i) for i in range(len(tokens))]
        return Draft(tokens, acceptance_probs, can_extend=cursor.at > len(anchors.token_ids))


def _advance_cursor(
    anchors: PredictionIndex,
    cursor: PredictionCursor,
    before: Sequence[int],
    token_ids: Sequence[int],
) -> PredictionCursor:
    """Return where an answer stands once some more tokens are written, which follow `before`."""
    tail = list(before)
    for token in token_ids:
        tail.append(token)
        cursor = _advance_one(anchors, cursor, tail[-anchors.max_n :])
    return cursor


def _advance_one(
    anchors: PredictionIndex, cursor: PredictionCursor, tail: Sequence[int]
) -> PredictionCursor:
    """Take the last token of the tail into account."""
    at, run, home, best = cursor.at, cursor.run, cursor.home, cursor.best
    if run != LOST and tuple(anchors.token_ids[at : at + 1]) == (tail[-1],):
        at, run = at + 1, run + 1
    else:
        found = anchors.find(tail, home)
        if found is None:
            return (
                PredictionCursor(at + 1, 0, home, best)
                if run > 0
                else PredictionCursor(at, LOST, home, best)
            )
        at, run = found
    return PredictionCursor(at, run, at if run >= MIN_AGREED else home, max(best, run))


def _match_prob(run: int) -> float:
    """Return the chance of a predicted token behind so many that agreed."""
    return (run + 1) / (run + 2)


def _hash(token_ids: Sequence[int]) -> int:
    key = 0
    for token in token_ids:
        key = (key * MULTIPLIER + token + 1) & MASK64
    return key


def make(options: PredictionOptions, *, context: DrafterContext) -> PredictionDrafter:
    """Build the drafter."""
    return PredictionDrafter(options)


METHOD = Method(
    kind="drafter",
    name="prediction",
    summary="The request's own `prediction` of its answer, found again behind every edit.",
    source="OpenAI, predicted outputs",
    target="plait.decoders.speculative.drafters.prediction:make",
    options=PredictionOptions,
)
