"""Prediction: the output that the client expects (OpenAI's `prediction`), followed through edits.

A cursor moves along the prediction as long as the output agrees with it. Where they differ, the
last tokens of the output are looked up in the prediction, the longest match of at most max_n tokens
first, and the cursor moves behind the match. Of several matches the first one behind `home`, the
last position that was certain, is taken, or else the last match. So deleted passages are skipped
and inserted ones are waited for. A token that does not occur in the prediction is taken, once, for
a replacement of the predicted one.

A draft has at most GROWTH tokens for each token that has ever agreed in a row, and for one more. An
output that does not begin like the prediction must have agreed in MIN_AGREED consecutive tokens
first; a single common word would not be a sign. So a wrong prediction costs only a few rows. While
the output follows the prediction no other drafter extends the draft: at the end of the prediction
the output should end as well.

Law: none of its own; every draft is verified. Cost: O(max_n log tokens) a token that differs; 12
bytes times max_n a predicted token, plus a set of them, once for all sequences of a request.
Source: OpenAI's predicted outputs, which specify the field and what is counted, not the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.contract.text import Text
from plait.decoders.speculative.config import MAX_DRAFT, DraftOptions
from plait.decoders.speculative.context import DrafterContext

MULTIPLIER = 0x9E3779B97F4A7C15
MASK64 = 2**64 - 1
MIN_AGREED = 3  # consecutive tokens that make a position certain
GROWTH = 2
LOST = -1


class PredictionOptions(DraftOptions):
    """How the position in the prediction is found again."""

    max_draft: int = Field(MAX_DRAFT, ge=1, le=MAX_DRAFT, description="Most tokens of one draft.")
    max_n: int = Field(4, ge=1, le=16, description="Most tokens that are looked up.")


class PredictionIndex:
    """One prediction, and where each of its n-grams, n in 1..max_n, ends.

    N-grams are known by their hash; a collision costs a rejected draft.
    """

    def __init__(self, token_ids: Sequence[int], max_n: int) -> None:
        self.token_ids = token_ids
        self.max_n = max_n
        self._followed = frozenset(token_ids[:-1])
        ids = np.asarray(token_ids, dtype=np.uint64) + np.uint64(1)
        last = len(ids)  # an n-gram that ends there has no next token
        hashes = np.zeros(last, dtype=np.uint64)  # of the n-gram that begins at each token
        self._tables = []
        for size in range(1, max_n + 1):
            count = max(last - size, 0)
            hashes = hashes[:count] * np.uint64(MULTIPLIER) + ids[size - 1 : size - 1 + count]
            order = np.argsort(hashes, kind="stable")
            self._tables.append((hashes[order], (order + size).astype(np.int32)))

    def find(self, tail: Sequence[int], home: int) -> tuple[int, int] | None:
        """Return the end of the longest match of a text's last tokens, and its length.

        Of several matches the first behind `home`; if all are before it, the last.
        """
        if not tail or tail[-1] not in self._followed:  # the usual case if the prediction is wrong
            return None
        longest: tuple[NDArray[np.int32], int] | None = None
        for size in range(1, min(self.max_n, len(tail)) + 1):
            hashes, ends = self._tables[size - 1]
            key = np.uint64(_hash(tail[len(tail) - size :]))
            first = int(hashes.searchsorted(key))
            if first == len(hashes) or hashes[first] != key:  # then there is no longer match
                break
            longest = ends[first : int(hashes.searchsorted(key, "right"))], size
        if longest is None:
            return None
        places, size = longest
        behind = int(places.searchsorted(home, "right"))
        return int(places[min(behind, len(places) - 1)]), size


@dataclass(frozen=True, slots=True)
class PredictionCursor:
    """The position of an output in its prediction."""

    at: int = 0  # index of the next predicted token
    run: int = 1  # tokens that agree in a row, plus 1 at the start; LOST: no position
    home: int = 0  # the last certain position
    best: int = 1  # the longest `run` so far


@dataclass(slots=True)
class PredictionState:
    """State of one sequence."""

    text: Text
    index: PredictionIndex | None  # None once the sequence has ended
    read: int  # tokens of the text that the cursor covers
    cursor: PredictionCursor = PredictionCursor()


class PredictionDrafter(Drafter[PredictionState]):
    """Follows each output through its own prediction."""

    name: ClassVar[str] = "prediction"

    def __init__(self, options: PredictionOptions) -> None:
        self._max_n = options.max_n
        self._known: WeakValueDictionary[tuple[int, ...], PredictionIndex] = WeakValueDictionary()

    def start(self, request: DecodeRequest) -> PredictionState | None:
        """Return the state; sequences with the same prediction share its index."""
        token_ids = tuple(request.extras.prediction_token_ids)
        if not token_ids:
            return None
        index = self._known.get(token_ids)
        if index is None:
            index = self._known[token_ids] = PredictionIndex(token_ids, self._max_n)
        return PredictionState(request.text, index, request.text.prompt_length)

    def fork(self, state: PredictionState, request: DecodeRequest) -> PredictionState:
        """Copy the cursor if the texts agree as far as it has read, or read again."""
        if state.text.num_shared(request.text) < state.read:
            return PredictionState(request.text, state.index, request.text.prompt_length)
        return replace(state, text=request.text)

    def truncate(self, state: PredictionState, request: DecodeRequest) -> PredictionState:
        """Keep the cursor if the text was cut behind it, or read again."""
        if len(request.text) < state.read:
            return PredictionState(request.text, state.index, request.text.prompt_length)
        return state

    def propose(self, requests: Sequence[DraftRequest[PredictionState]]) -> Sequence[Draft]:
        """Return the next tokens of each prediction."""
        return [self._draft(request) for request in requests]

    def observe(
        self, state: PredictionState, text: Sequence[int], result: VerificationResult
    ) -> None:
        """Do nothing: the cursor moves at the next draft."""

    def finish(self, state: PredictionState, text: Sequence[int]) -> None:
        """Drop the index; the last sequence that drops it frees it."""
        state.index = None

    def _draft(self, request: DraftRequest[PredictionState]) -> Draft:
        state, text, index = request.state, request.text, request.state.index
        if index is None:
            return Draft()
        before = text[max(state.read - self._max_n, 0) : state.read]
        known = _advance_cursor(index, state.cursor, before, text[state.read :])
        state.cursor, state.read = known, len(text)
        cursor = _advance_cursor(index, known, text[-self._max_n :], request.draft_prefix)
        if cursor.run == LOST:
            return Draft()
        unverified = min(cursor.run, len(request.draft_prefix))  # draft tokens that agree
        agreed = max(known.best, cursor.run - unverified)
        is_prefix = cursor.run == cursor.at + 1  # has agreed from the first token on
        if not (is_prefix or agreed >= MIN_AGREED):
            return Draft()
        max_tokens = min(request.max_tokens, GROWTH * (agreed + 1) - unverified)
        tokens = index.token_ids[cursor.at : cursor.at + max(max_tokens, 0)]
        probs = [_match_prob(cursor.run + i) for i in range(len(tokens))]
        return Draft(tokens, probs, can_extend=cursor.at > len(index.token_ids))


def _advance_cursor(
    index: PredictionIndex,
    cursor: PredictionCursor,
    before: Sequence[int],
    token_ids: Sequence[int],
) -> PredictionCursor:
    """Return the cursor after some more tokens of output, which follow `before`."""
    tail = list(before)
    for token in token_ids:
        tail.append(token)
        cursor = _advance_one(index, cursor, tail[-index.max_n :])
    return cursor


def _advance_one(
    index: PredictionIndex, cursor: PredictionCursor, tail: Sequence[int]
) -> PredictionCursor:
    """Return the cursor after one more token, the last of `tail`."""
    at, run, home, best = cursor.at, cursor.run, cursor.home, cursor.best
    if run != LOST and tuple(index.token_ids[at : at + 1]) == (tail[-1],):
        at, run = at + 1, run + 1
    else:
        found = index.find(tail, home)
        if found is None:
            at, run = (at + 1, 0) if run > 0 else (at, LOST)
            return PredictionCursor(at, run, home, best)
        at, run = found
    return PredictionCursor(at, run, at if run >= MIN_AGREED else home, max(best, run))


def _match_prob(run: int) -> float:
    """Return the acceptance probability of a predicted token after `run` that agreed."""
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
    summary="The request's `prediction` of its output, found again after every edit.",
    source="OpenAI, predicted outputs",
    target="plait.decoders.speculative.drafters.prediction:make",
    options=PredictionOptions,
)
