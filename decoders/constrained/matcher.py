"""The constraint of one sequence: its position in the automaton of its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from plait.decoders.constrained.gaps import GapFiller
from plait.decoders.constrained.table import OperationTable, load_automaton
from plait.decoders.constrained.token_dfa import build_token_dfa
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.decoders.contract.constraint import Gap, GapFilling, TokenDfa
from plait.decoders.contract.decoder import SequenceError
from plait.kernels.grammar import DEAD, Automaton, OpKind

if TYPE_CHECKING:
    from torch import Tensor

MAX_AUTOMATON_BYTES = 64 * 2**20  # of one grammar; beyond, its automaton begins anew
MIN_MASKS = 8  # that must fit; a large schema's take some 0.5 MB each, a hostile grammar's 25


class TooAmbiguous(SequenceError):
    """Every mask of this grammar costs so much that it would delay all other requests."""

    is_client_error: ClassVar[bool] = True


class LoadedGrammar:
    """A grammar and its automaton, shared by all sequences that it constrains."""

    def __init__(self, table: OperationTable, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._table = table
        self._automaton = load_automaton(table, vocabulary)
        self.marks = 0  # all bits that there are
        for kind, *rest in table.operations:
            self.marks |= rest[0] if kind == OpKind.MARK else 0
        self._token_dfas: dict[bytes, TokenDfa] = {}  # by prefix: the last one
        self._num_masks = 0  # of the automaton
        self._num_full = 0  # automata in a row that were full too soon

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the automaton."""
        return self._automaton.num_bytes

    def automaton(self) -> Automaton:
        """Return the automaton; a new one if it has grown over MAX_AUTOMATON_BYTES.

        States depend on the text alone, so only their numbers change.

        Raises:
            TooAmbiguous: two in a row were full before they had written MIN_MASKS.
        """
        if self._num_full > 1:
            raise TooAmbiguous(
                "The grammar of the answer is too ambiguous: it can read the same text in too many "
                "ways. Write it so that what follows tells its alternatives apart."
            )
        if self._automaton.num_bytes > MAX_AUTOMATON_BYTES:
            self._num_full = self._num_full + 1 if self._num_masks < MIN_MASKS else 0
            self._num_masks = 0
            self._automaton = load_automaton(self._table, self.vocabulary)
        return self._automaton

    @cached_property
    def gap_filler(self) -> GapFiller:
        """What fills texts with gaps. Cost: linear in the grammar, once."""
        return GapFiller(self._table, self.vocabulary)

    def token_dfa(self, prefix: bytes) -> TokenDfa:
        """Return the automaton of the tokens behind a prefix; kept, as it takes a while to make.

        Raises:
            NotFinite: there is none.
        """
        if prefix not in self._token_dfas:
            automaton = load_automaton(self._table, self.vocabulary)
            start = _walked(automaton, prefix)
            found = build_token_dfa(self._table, self.vocabulary, automaton, start)
            self._token_dfas = {prefix: found}
        return self._token_dfas[prefix]

    def count_mask(self) -> None:
        """Count one more mask of the automaton."""
        self._num_masks += 1


class GrammarConstraint:
    """A `plait.decoders.contract.constraint.Constraint` over a loaded grammar.

    Law: a token is accepted exactly when its bit is set; the end-of-text tokens are legal exactly
    when the text is complete; other special tokens and ids beyond the vocabulary never are.
    Following `closing_tokens` always ends in an accepting state. (Where a grammar is so ambiguous
    that a mask is more work than any may be, it holds fewer tokens, but always one to the end.)
    """

    def __init__(self, grammar: LoadedGrammar) -> None:
        self._grammar = grammar
        self._automaton = grammar.automaton()
        self._prefill = b""  # in front of the tokens
        self._token_ids: list[int] = []
        self._states: list[int] = [self._automaton.start]  # one more than tokens
        self._is_ended = False  # by an end-of-text token, the last one

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Write the legal set to bitmask[row] [words] int32, words >= vocabulary / 32.

        Returns True: some token is illegal.
        """
        bits = bitmask[row].numpy()  # the same memory; small operations cost less there
        if self._is_ended:
            bits[:] = 0
            return True
        state = self._state()
        self._grammar.count_mask()
        self._automaton.write_mask(state, bits)
        if self._automaton.is_accepting(state):
            for token_id in self._grammar.vocabulary.eos_token_ids:
                bit = 1 << token_id % 32
                bits[token_id // 32] |= bit - 2**32 if bit == 2**31 else bit
        return True

    def accept_token(self, token_id: int) -> bool:
        """Advance; False (and unchanged) if the token is illegal."""
        if self._is_ended:
            return False
        state = self._state()
        is_end = token_id in self._grammar.vocabulary.eos_token_ids
        if is_end:
            state = state if self._automaton.is_accepting(state) else DEAD
        elif self._grammar.vocabulary.is_text(token_id):
            state = self._automaton.advance(state, token_id)
        else:
            state = DEAD
        if state == DEAD:
            return False
        self._is_ended = is_end
        self._token_ids.append(token_id)
        self._states.append(state)
        return True

    @property
    def marks(self) -> int:
        """All marks that there are in the grammar."""
        return self._grammar.marks

    def text_of(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text."""
        vocabulary = self._grammar.vocabulary
        return vocabulary.token_bytes[token_id] if vocabulary.is_text(token_id) else b""

    def marks_along(self, text: bytes) -> bytes:
        """Return the marks behind each byte of a text that follows; 0 where it is illegal."""
        state, found = self._state(), bytearray(len(text))
        for i, byte in enumerate(text):
            state = self._automaton.step(state, byte)
            if state == DEAD:
                break
            found[i] = self._automaton.marks(state)
        return bytes(found)

    def short_tokens(self, count: int) -> Sequence[int]:
        """Return up to so many legal tokens, in the order of Vocabulary.by_length."""
        words = np.zeros(-(-len(self._grammar.vocabulary.token_bytes) // 32), np.int32)
        self._grammar.count_mask()
        self._automaton.write_mask(self._state(), words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        legal = (i for i in self._grammar.vocabulary.by_length if bits[i])
        return list(islice(legal, count))

    def accept_text(self, text: bytes) -> bool:
        """Advance over bytes in front of the first token; False (and unchanged) if no legal text
        begins with them. This can't be rolled back."""
        assert not self._token_ids and not self._prefill, "a prefill stands at the start"
        state = _walked(self._automaton, text)
        if state == DEAD:
            return False
        self._prefill, self._states = text, [state]
        return True

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        if num_tokens > 0:
            self._is_ended = False
            del self._token_ids[-num_tokens:]
            del self._states[-num_tokens:]

    def fork(self) -> GrammarConstraint:
        """Return an independent copy. Cost: two list copies."""
        copy = object.__new__(GrammarConstraint)
        copy._grammar = self._grammar
        copy._automaton = self._automaton
        copy._prefill = self._prefill
        copy._token_ids = self._token_ids.copy()
        copy._states = self._states.copy()
        copy._is_ended = self._is_ended
        return copy

    def is_accepting(self) -> bool:
        """Return whether the text so far is complete."""
        return self._automaton.is_accepting(self._state())

    def is_terminated(self) -> bool:
        """Return whether only the end of the text can follow."""
        return self._is_ended or self._automaton.is_final(self._state())

    def min_tokens(self) -> int:
        """Return the length of `closing_tokens`: 0 when the text is complete.

        An upper bound of the true minimum that can be reached; see plait.kernels.grammar.
        """
        return 0 if self._is_ended else self._automaton.num_closing(self._state())

    def closing_tokens(self) -> Sequence[int]:
        """Return a short list of tokens that completes the text."""
        return [] if self._is_ended else self._automaton.closing_tokens(self._state())

    def forced_tokens(self) -> Sequence[int]:
        """Return tokens that spell the forced text, up to where other legal tokens reach beyond it.

        The text is forced, its tokens are not: other tokens may spell the same text.
        """
        return self._forced()[0]

    def boundary_tokens(self) -> Sequence[int]:
        """Return tokens that spell the rest of the forced text, after `forced_tokens`.

        Other legal tokens reach beyond its end, into text that is not forced.
        """
        return self._forced()[1]

    def fill_gaps(self, pieces: Sequence[int | Gap]) -> GapFilling:
        """Return whether a whole text can be filled; what was accepted so far does not matter."""
        automaton = self._grammar.automaton()
        return self._grammar.gap_filler.fill(self._prefill, pieces, automaton)

    def token_dfa(self) -> TokenDfa:
        """Return the automaton of the whole text's tokens; what was accepted does not matter.

        Raises:
            NotFinite: there is none.
        """
        return self._grammar.token_dfa(self._prefill)

    def _forced(self) -> tuple[Sequence[int], Sequence[int]]:
        return ((), ()) if self._is_ended else self._automaton.forced(self._state())

    def _state(self) -> int:
        """Return the state of the text in the grammar's current automaton."""
        automaton = self._grammar.automaton()
        if automaton is not self._automaton:
            states = [_walked(automaton, self._prefill)]
            for token_id in self._token_ids:
                is_end = token_id in self._grammar.vocabulary.eos_token_ids
                states.append(states[-1] if is_end else automaton.advance(states[-1], token_id))
            self._automaton, self._states = automaton, states
        return self._states[-1]


def _walked(automaton: Automaton, text: bytes) -> int:
    """Return the state after a text, or DEAD."""
    state = automaton.start
    for byte in text:
        if state == DEAD:
            break
        state = automaton.step(state, byte)
    return state
