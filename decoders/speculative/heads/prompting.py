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
from plait.decoders.speculative.drafters.ppd import PpdOptions
from plait.decoders.speculative.heads.guessing import Columns, Dice, ranked
from plait.decoders.speculative.heads.prompt_trees import Accuracy, tokens_per_step, trees_for
from plait.decoders.speculative.workshop import Workshop

LENGTHS = (6, 8, 12, 16)  # rows of the trees that are tried on the measured costs


@dataclass(frozen=True, slots=True)
class Accuracies:
    """A[d][i]: how often the guess of rank i for d + 1 places ahead is right."""

    greedy: Accuracy
    sampled: Accuracy  # at temperature 1, under shared noise


@dataclass(slots=True)
class Guesses:
    """What the prompts behind the last accepted token said."""

    dice: Dice
    tokens: list[list[int]] = field(default_factory=list)  # [places][ranks]


class Ppd:
    """Feeds prompts, and reads guesses off their rows."""

    name: ClassVar[str] = "ppd"

    def __init__(self, workshop: Workshop, accuracies: Accuracies, length: int) -> None:
        """Args: length is the rows of a tree."""
        self._first = workshop.vocab_size  # the id of the first prompt
        self._columns = Columns(naive=workshop.naive)
        self._width = accuracies.greedy.shape[1]
        self._trees = {
            True: trees_for(accuracies.greedy, length),
            False: trees_for(accuracies.sampled, length),
        }

    def start(self, request: DecodeRequest) -> Guesses:
        """Begin without guesses: the first step only feeds prompts."""
        return Guesses(Dice(request))

    def propose(self, asks: Sequence[DraftRequest[Guesses]]) -> Sequence[Draft]:
        """Return the trees of the sequences' states."""
        return [self._draft(ask) for ask in asks]

    def commit(self, state: Guesses, text: Sequence[int], verdict: VerificationResult) -> None:
        """Read the guesses off the prompts behind the last row that was reached."""
        rows = self._prompts_behind(verdict.reached[-1] - 1, verdict)
        state.tokens = self._guesses(state, len(text), verdict.logits[rows]) if rows else []

    def finish(self, state: Guesses, text: Sequence[int]) -> None:
        """Hold nothing."""

    def _draft(self, ask: DraftRequest[Guesses]) -> Draft:
        guesses = ask.state.tokens[len(ask.ahead) :]  # what others have drafted is not guessed anew
        tree = self._trees[ask.state.dice.is_greedy][len(guesses)]
        rows = tree.rows[: ask.limit]
        return Draft(
            [
                self._first + row.depth if row.is_prompt else guesses[row.depth][row.rank]
                for row in rows
            ],
            [tree.chance(i) for i in range(len(rows))],
            [row.parent for row in rows],
        )

    def _prompts_behind(self, node: int, verdict: VerificationResult) -> list[int]:
        """Return the rows of the prompts that hung on a draft token, or on the text."""
        rows: list[int] = []
        for i, (token, parent) in enumerate(zip(verdict.token_ids, verdict.parents, strict=True)):
            if parent == node and token == self._first + len(rows):
                rows.append(i + 1)
                node = i
        return rows

    def _guesses(self, state: Guesses, position: int, logits: Tensor) -> list[list[int]]:
        """Return the best guesses for the places from `position` on."""
        dice, places = [state.dice] * len(logits), range(position, position + len(logits))
        found: list[list[int]] = ranked(logits, dice, places, self._width, self._columns)[
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


def read_accuracies(tensors: Mapping[str, NDArray[Any]]) -> Accuracies:
    """Return A as it was measured, of a head's tensors."""
    greedy, sampled = (
        tensors[name].astype(np.float64) for name in ("accuracy", "accuracy_sampled")
    )
    return Accuracies(greedy, sampled)


def make(options: PpdOptions, *, workshop: Workshop) -> Ppd:
    """Build the drafter from the head that fits the served weights."""
    accuracies = read_accuracies(load_file(workshop.heads["ppd"]))
    length = options.length or best_length(accuracies.greedy, workshop.costs)
    return Ppd(workshop, accuracies, min(length, options.max_draft))
