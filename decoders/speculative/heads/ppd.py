"""Drafting with PPD: prompt tokens are fed, and guesses are read from their rows.

Law: none of its own; every draft is verified. With a temperature, guesses are ranked with the noise
of their position, with which the token will be sampled. Cost: its rows, and m rows of logits a step
to rank. A state that is built from a text alone has no guesses, so its first draft has only prompt
tokens.
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
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters.ppd import PpdOptions
from plait.decoders.speculative.heads.prompt_trees import Accuracy, tokens_per_step, trees_for
from plait.decoders.speculative.heads.ranking import DraftVocabulary, DrawParams, rank_guesses

LENGTHS = (6, 8, 12, 16)  # sizes that are compared by measured cost


@dataclass(frozen=True, slots=True)
class GuessAccuracies:
    """A[d][i]: how often the guess of rank i at distance d + 1 is right."""

    greedy: Accuracy
    sampled: Accuracy  # at temperature 1, under shared noise


@dataclass(slots=True)
class PpdState:
    """The guesses of the prompt tokens behind the last accepted token."""

    draws: DrawParams
    tokens: list[list[int]] = field(default_factory=list)  # [distances][ranks]


class PpdDrafter(Drafter[PpdState]):
    """Feeds prompt tokens, and reads guesses from their rows."""

    name: ClassVar[str] = "ppd"

    def __init__(self, context: DrafterContext, accuracies: GuessAccuracies, length: int) -> None:
        """Args: length is the number of rows of a tree."""
        self._first = context.vocab_size  # the id of the first prompt token
        self._vocabulary = DraftVocabulary(context.backend)
        self._width = accuracies.greedy.shape[1]
        self._trees = {
            True: trees_for(accuracies.greedy, length),
            False: trees_for(accuracies.sampled, length),
        }

    def start(self, request: DecodeRequest) -> PpdState:
        """Return the state without guesses: the first step only feeds prompt tokens."""
        return PpdState(DrawParams(request))

    def propose(self, requests: Sequence[DraftRequest[PpdState]]) -> Sequence[Draft]:
        """Return the tree of each sequence's state."""
        return [self._draft(request) for request in requests]

    def observe(self, state: PpdState, text: Sequence[int], result: VerificationResult) -> None:
        """Read the guesses from the prompt tokens behind the last accepted row."""
        rows = self._prompts_behind(result.accepted_rows[-1] - 1, result)
        state.tokens = self._guesses(state, len(text), result.logits[rows]) if rows else []

    def finish(self, state: PpdState, text: Sequence[int]) -> None:
        """Do nothing: there is nothing to release."""

    def _draft(self, request: DraftRequest[PpdState]) -> Draft:
        guesses = request.state.tokens[
            len(request.draft_prefix) :
        ]  # without the positions of the draft prefix
        tree = self._trees[request.state.draws.is_greedy][len(guesses)]
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
        """Return the rows of the prompt tokens behind a node, or behind the text."""
        rows: list[int] = []
        for i, (token, parent) in enumerate(zip(result.token_ids, result.parents, strict=True)):
            if parent == node and token == self._first + len(rows):
                rows.append(i + 1)
                node = i
        return rows

    def _guesses(self, state: PpdState, position: int, logits: Tensor) -> list[list[int]]:
        """Return the best guesses for the positions from `position` on."""
        draws, positions = [state.draws] * len(logits), range(position, position + len(logits))
        best, _ = rank_guesses(logits, draws, positions, self._width, self._vocabulary)
        found: list[list[int]] = best.tolist()
        return found


def best_length(accuracy: Accuracy, costs: CostCurve) -> int:
    """Return the length with the most tokens a second for a single sequence."""
    seconds = costs.seconds(1 + LENGTHS[-1])
    return max(
        LENGTHS,
        key=lambda length: tokens_per_step(trees_for(accuracy, length)) / seconds[1 + length],
    )


def read_accuracies(tensors: Mapping[str, NDArray[Any]]) -> GuessAccuracies:
    """Return the measured A from the tensors of a head."""
    greedy, sampled = (
        tensors[name].astype(np.float64) for name in ("accuracy", "accuracy_sampled")
    )
    return GuessAccuracies(greedy, sampled)


def make(options: PpdOptions, *, context: DrafterContext) -> PpdDrafter:
    """Build the drafter from the head trained for the served weights."""
    accuracies = read_accuracies(load_file(context.heads["ppd"]))
    length = options.length or best_length(accuracies.greedy, context.costs)
    return PpdDrafter(context, accuracies, min(length, options.max_draft))
