"""The constraint of one sequence: xgrammar's matcher for the mask, our automaton for the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xgrammar
from numpy.typing import NDArray

from plait.decoders.constrained.automaton import Automaton, Forced, State
from plait.decoders.constrained.closing import tokens_of
from plait.decoders.constrained.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoadedGrammar:
    """What all sequences under one grammar share."""

    compiled: xgrammar.CompiledGrammar
    automaton: Automaton
    vocabulary: Vocabulary


class GrammarConstraint:
    """A `plait.decoders.protocol.Constraint` over a compiled grammar.

    Law: a token is accepted exactly when its bit is set; the end-of-text tokens are legal exactly
    when the text is complete; other special tokens and ids beyond the vocabulary never are.
    Following `closing_tokens` always ends in an accepting state.
    """

    def __init__(self, grammar: LoadedGrammar) -> None:
        self._grammar = grammar
        self._matcher = xgrammar.GrammarMatcher(grammar.compiled)
        self._token_ids: list[int] = []
        # The state after each accepted token, as far as anybody asked; [0] is the start.
        self._states: list[State | None] = [grammar.automaton.start]

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Write the legal set to bitmask[row] [words] int32, words >= vocabulary / 32.

        Returns False if every token is legal; then the row may be unchanged.
        """
        words = -(-len(self._grammar.vocabulary.token_bytes) // 32)
        bits = bitmask[row].numpy()  # the same memory; small operations cost less there
        bits[words:] = 0
        if self._matcher.is_terminated():
            bits[:] = 0
            return True
        narrow = bitmask[row : row + 1, :words]
        is_partial = bool(self._matcher.fill_next_token_bitmask(narrow, 0))
        bits[words - 1] &= self._grammar.vocabulary.last_word  # xgrammar may set the bits beyond
        keep = self._keep()
        if keep is not None:
            bits[:words] &= keep
        return is_partial or keep is not None or words < bitmask.shape[1]

    def accept_token(self, token_id: int) -> bool:
        """Advance; False (and unchanged) if the token is illegal."""
        vocabulary = self._grammar.vocabulary
        if token_id in vocabulary.eos_token_ids:
            legal = self._matcher.is_completed() and not self._matcher.is_terminated()
        else:
            legal = vocabulary.is_text(token_id) and not self._matcher.is_terminated()
        if not (legal and self._matcher.accept_token(token_id)):
            return False
        self._token_ids.append(token_id)
        if self._grammar.automaton.counts and self._state() is None:
            self.rollback(1)
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        if num_tokens == 0:
            return
        self._matcher.rollback(num_tokens)
        del self._token_ids[-num_tokens:]
        del self._states[len(self._token_ids) + 1 :]

    def fork(self) -> GrammarConstraint:
        """Return an independent copy. Cost: the matcher's own fork, and two list copies."""
        copy = object.__new__(GrammarConstraint)
        copy._grammar = self._grammar
        copy._matcher = self._matcher.fork()
        copy._token_ids = self._token_ids.copy()
        copy._states = self._states.copy()
        return copy

    def is_accepting(self) -> bool:
        """Tell whether the text so far is complete."""
        return bool(self._matcher.is_completed())

    def is_terminated(self) -> bool:
        """Tell whether nothing but the end can follow."""
        if self._matcher.is_terminated():
            return True
        state = self._state()
        return state is not None and state.is_final

    def min_tokens(self) -> int:
        """Return the length of `closing_tokens`: 0 when the text is complete.

        An upper bound of the true minimum that can be reached; see automaton.py.
        """
        state = self._state()
        return 0 if state is None or self._matcher.is_terminated() else state.closing.tokens

    def closing_tokens(self) -> Sequence[int]:
        """Return the tokens that complete the text from here the cheapest way."""
        state = self._state()
        return [] if state is None or self._matcher.is_terminated() else tokens_of(state.closing)

    def forced_tokens(self) -> Sequence[int]:
        """Return tokens of the text that must follow, none of which an alternative reaches over.

        Exact up to the spelling: with other tokens the same text could be written.
        """
        return self._forced().sure

    def border_tokens(self) -> Sequence[int]:
        """Return tokens that spell what is forced behind `forced_tokens`.

        Other legal tokens reach over its end, into what is not forced.
        """
        return self._forced().border

    def _forced(self) -> Forced:
        state = self._state()
        if state is None or self._matcher.is_terminated():
            return Forced()
        return self._grammar.automaton.forced(state)

    def _keep(self) -> NDArray[np.int32] | None:
        """Return what long counts leave of the mask; None: all of it."""
        automaton = self._grammar.automaton
        state = self._state() if automaton.counts else None
        return None if state is None else automaton.keep(state)

    def _state(self) -> State | None:
        """Catch up with the accepted tokens. None: given up (see automaton.MAX_STACKS)."""
        automaton, vocabulary = self._grammar.automaton, self._grammar.vocabulary
        states = self._states
        for token_id in self._token_ids[len(states) - 1 :]:
            state = states[-1]
            for byte in (
                b"" if token_id in vocabulary.eos_token_ids else (vocabulary.token_bytes[token_id])
            ):
                if state is None:
                    break
                state = automaton.step(state, byte)
            states.append(state)
        return states[-1]
