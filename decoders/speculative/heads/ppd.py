"""PPD at work: prompts are fed, guesses are read off their rows.

Law: none of its own; verified as every draft. Under a temperature, guesses are ranked with the
noise of the place that they are for, which is the noise that the token will be drawn with.
Cost: no more than its rows, and a look at m rows of logits a step.
Source: see drafters/ppd.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters.ppd import PpdOptions
from plait.decoders.speculative.heads.prompt_trees import Accuracy, tokens_per_step, trees_for
from plait.decoders.speculative.heads.ranking import DraftVocabulary, DrawParams, rank_guesses

LENGTHS = (6, 8, 12, 16)  # rows of the trees that are tried on the measured costs


@dataclass(frozen=True, slots=True)
class GuessAccuracies:
    """A[d][i]: how often the guess of rank i for d + 1 places ahead is right."""

    greedy: Accuracy
    sampled: Accuracy  # at temperature 1, under shared noise


@dataclass(slots=True)
class PpdState:
    """What the prompts behind the last accepted token said."""

    dice: DrawParams
    tokens: list[list[int]] = field(default_factory=list)  # [places][ranks]


class PpdDrafter:
    """Feeds prompts, and reads guesses off their rows."""

    name: ClassVar[str] = "ppd"

    def __init__(self, context: DrafterContext, accuracies: GuessAccuracies, length: int) -> None:
        """Args: length is the rows of a tree."""
        self._first = context.vocab_size  # the id of the first prompt
        self._columns = DraftVocabulary(naive=context.naive)
        self._width = accuracies.greedy.shape[1]
        self._trees = {
            True: trees_for(accuracies.greedy, length),
            False: trees_for(accuracies.sampled, length),
        }

    def start(self, request: DecodeRequest) -> PpdState:
        """Begin without guesses: the first step only feeds prompts."""
        return PpdState(DrawParams(request))

    def propose(self, requests: Sequence[DraftRequest[PpdState]]) -> Sequence[Draft]:
        """Return the trees of the sequences' states."""
        return [self._draft(request) for request in requests]

    def commit(self, state: PpdState, text: Sequence[int], result: VerificationResult) -> None:
        """Read the guesses off the prompts behind the last row that was reached."""
        rows = self._prompts_behind(result.accepted_rows[-1] - 1, result)
        state.tokens = self._guesses(state, len(text), result.logits[rows]) if rows else []

    def finish(self, state: PpdState, text: Sequence[int]) -> None:
        """Hold nothing."""

    def _draft(self, request: DraftRequest[PpdState]) -> Draft:
        guesses = request.state.tokens[
            len(request.draft_prefix) :
        ]  # what others have drafted is not guessed anew
        tree = self._trees[request.state.dice.is_greedy][len(guesses)]
        rows = tree.rows[: request.max_tokens]
        return Draft(
            [
                self._first + row.depth if row.is_prompt else guesses[row.depth][row.rank]
                for row in rows
            ],
            [tree.acceptance_prob(i) for i in range(len(rows))],
            [row.parent for row in rows],
        )

    def _prompts_behind(self, node: int, result: VerificationResult) -> list[int]:
        """Return the rows of the prompts that hung on a draft token, or on the text."""
        rows: list[int] = []
        for i, (token, parent) in enumerate(zip(result.token_ids, result.parents, strict=True)):
            if parent == node and token == self._first + len(rows):
                rows.append(i + 1)
                node = i
        return rows

    def _guesses(self, state: PpdState, position: int, logits: Tensor) -> list[list[int]]:
        """Return the best guesses for the places from `position` on."""
        dice, places = [state.dice] * len(logits), range(position, position + len(logits))
        found: list[list[int]] = rank_guesses(logits, dice, places, self._width, self._columns)[
            0
        ].tolist()
        return found


def best_length(accuracy: Accuracy, costs: CostCurve) -> int:
    """Return the length whose trees give the most tokens a second to a sequence by itself."""
    seconds = costs.seconds(1 + LENGTHS[-1])
    return max(
        LENGTHS,
        key=lambda length: tokens_per_step(trees_for(accuracy, length)) / seconds[1 + length],
    )


def read_accuracies(tensors: Mapping[str, NDArray[Any]]) -> GuessAccuracies:
    """Return A as it was measured, of a head's tensors."""
    greedy, sampled = (
        tensors[name].astype(np.float64) for name in ("accuracy", "accuracy_sampled")
    )
    return GuessAccuracies(greedy, sampled)


def make(options: PpdOptions, *, context: DrafterContext) -> PpdDrafter:
    """Build the drafter from the head that fits the served weights."""
    accuracies = read_accuracies(load_file(context.heads["ppd"]))
    length = options.length or best_length(accuracies.greedy, context.costs)
    return PpdDrafter(context, accuracies, min(length, options.max_draft))
