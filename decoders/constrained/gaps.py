"""Fills the gaps of a text with tokens so that it becomes a text of a grammar.

A gap is a run of masked positions: at least and at most so many tokens. The grammar is intersected
with the bytes that such texts have (plait.kernels.grammar.saturation): a gap of at least n tokens
has at least n bytes. What that finds empty, no filling can repair. What it finds is a filling in
bytes, the shortest; it is spelled in tokens, gap by gap, with exactly as many as fit, and then it
is a proof. Where no spelling fits, the grammar is intersected anew with gaps of tokens, whose bytes
are those of the vocabulary's trie: first with as many as a gap needs or more, of which the fewest
are found, then with as many as it may have, position by position. That is exact, and more work.
Only where it is too much, the answer is "unknown".

Source: Mündler et al. 2025, arXiv:2508.10111, section 4. Differences: the grammar reads bytes and
its lexemes are automata over bytes, so fragments are not lexed and no terminal is cut in two at the
edge of a gap; gaps are bounded by their masks, where the paper's take any text; a limit says
"unknown", where the paper's refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from functools import cached_property
from itertools import pairwise

from plait.decoders.constrained.table import OperationTable
from plait.decoders.constrained.vocabulary import MAX_TOKEN_BYTES, Vocabulary
from plait.decoders.contract.constraint import Gap, GapFilling
from plait.kernels.grammar import DEAD, Automaton
from plait.kernels.grammar.network import build_network
from plait.kernels.grammar.saturation import (
    ANY_BYTE,
    BYTES,
    MAX_ITEMS,
    NOTHING,
    TOKEN,
    TOKEN_OR_NOTHING,
    TOKENS,
    Found,
    make_saturation,
)

PLAIN, COMPOSED = 1, 4  # costs of a filled-in byte: one that is a token by itself, and another
IMPOSSIBLE = GapFilling(exists=False)
UNKNOWN = GapFilling(exists=None)
MISFIT = GapFilling(exists=None)  # to be asked again, with gaps of another form
MAX_TOKENS = 64  # that a gap may have beyond what it needs, where they are counted
MAX_TOKEN_ITEMS = 300_000  # triples of a question whose gaps are


class GapForm(Enum):
    """What a gap is filled with, from the least work to the most."""

    BYTES = auto()  # as many bytes as it needs tokens, or more: the fewest bytes
    TOKENS = auto()  # as many tokens as it needs, or more: the fewest tokens
    COUNTED = auto()  # as many tokens as it may have


class GapFiller:
    """Fills the gaps of texts of one grammar. Used by one thread at a time."""

    def __init__(
        self, table: OperationTable, vocabulary: Vocabulary, max_items: int = MAX_ITEMS
    ) -> None:
        self._vocabulary = vocabulary
        self._max_items = max_items
        network = build_network(table.operations, table.dfas, table.root)
        self._is_exact = network.is_exact
        self._saturation = make_saturation(network, self._byte_costs, vocabulary.handle)

    def fill(self, prefix: bytes, pieces: Sequence[int | Gap], automaton: Automaton) -> GapFilling:
        """Return whether the gaps of a text can be filled, and how.

        Law: a filling that is returned fits its gaps and gives a text of the grammar; where none is
        said to exist, none does.

        Args:
            prefix: bytes in front of the text.
            pieces: tokens and gaps, up to the end of the text.
            automaton: of the grammar.
        Cost: milliseconds; the triples of the saturation grow with the square of a gap's length.
        """
        found = MISFIT
        for form in GapForm:
            if found is MISFIT:
                found = self._filled(prefix, pieces, automaton, form)
        return UNKNOWN if found is MISFIT else found

    def _filled(
        self, prefix: bytes, pieces: Sequence[int | Gap], automaton: Automaton, form: GapForm
    ) -> GapFilling:
        """Fill gaps of one form; MISFIT: no tokens spell what was found, or it was too much."""
        line = _Line(prefix, form)
        for piece in pieces:
            if isinstance(piece, Gap):
                line.add_gap(piece)
            elif self._vocabulary.is_text(piece):
                line.add(self._vocabulary.token_bytes[piece])
            else:
                return IMPOSSIBLE
        limit = self._max_items if form is GapForm.BYTES else min(MAX_TOKEN_ITEMS, self._max_items)
        found, filling = self._saturation.fill(line.leave, line.loops, limit)
        if found != Found.FILLED:
            return IMPOSSIBLE if found == Found.EMPTY else MISFIT
        texts = line.texts(filling)
        if not self._is_exact and not _accepts(automaton, line.joined(texts)):
            return MISFIT
        spelled = [self.spell(text, gap) for text, gap in zip(texts, line.gaps, strict=True)]
        tokens = [each for each in spelled if each is not None]
        return GapFilling(exists=True, tokens=tokens) if len(tokens) == len(texts) else MISFIT

    def spell(self, text: bytes, gap: Gap) -> list[int] | None:
        """Return the fewest tokens, but as many as the gap needs, that spell a text; None: none do.

        Cost: O(bytes * longest token) look-ups.
        """
        token_of = self._vocabulary.token_of
        counts = [1, *[0] * len(text)]  # bit n: the text up to here can be spelled with n tokens
        for start in range(len(text)):
            for stop in range(start + 1, min(start + MAX_TOKEN_BYTES, len(text)) + 1):
                if counts[start] and text[start:stop] in token_of:
                    counts[stop] |= counts[start] << 1
        fitting = [n for n in range(gap.least, gap.most + 1) if counts[-1] >> n & 1]
        if not fitting:
            return None
        return self._spelling(text, counts, fitting[0])

    def _spelling(self, text: bytes, counts: Sequence[int], count: int) -> list[int]:
        """Return `count` tokens that spell a text, the last of them as long as they can be."""
        token_of, found, stop = self._vocabulary.token_of, list[int](), len(text)
        for left in range(count - 1, -1, -1):
            start = next(
                at
                for at in range(max(stop - MAX_TOKEN_BYTES, 0), stop)
                if counts[at] >> left & 1 and text[at:stop] in token_of
            )
            found.append(token_of[text[start:stop]])
            stop = start
        return found[::-1]

    @cached_property
    def _byte_costs(self) -> list[int]:
        token_of = self._vocabulary.token_of
        used = {byte for text in token_of for byte in text}
        return [
            (PLAIN if bytes([byte]) in token_of else COMPOSED) if byte in used else 0
            for byte in range(256)
        ]


class _Line:
    """A text with gaps as the saturation reads it."""

    def __init__(self, prefix: bytes, form: GapForm) -> None:
        self._form = form
        self.leave = list[int](prefix)
        self.loops = [NOTHING] * (len(prefix) + 1)
        self.gaps: list[Gap] = []
        self._gap_at: dict[int, int] = {}  # by position: index of the gap that it belongs to
        self._places: list[int] = []  # of each gap: bytes of the fragments before it
        self._fragments = bytearray(prefix)

    def add(self, fragment: bytes) -> None:
        self.leave += fragment
        self.loops += [NOTHING] * len(fragment)
        self._fragments += fragment

    def add_gap(self, gap: Gap) -> None:
        """Add the positions of a gap; gaps do not touch each other."""
        first, spare = len(self.leave), gap.most - gap.least
        self.leave += [ANY_BYTE if self._form is GapForm.BYTES else TOKEN] * gap.least
        if self._form is GapForm.COUNTED and spare <= MAX_TOKENS:
            self.leave += [TOKEN_OR_NOTHING] * spare
            spare = 0
        self.loops += [NOTHING] * (len(self.leave) - first)
        if self._form is GapForm.BYTES and gap.most:
            self.loops[-1] = BYTES
        elif spare:
            self.loops[-1] = TOKENS
        self._gap_at |= dict.fromkeys(range(first, len(self.leave) + 1), len(self.gaps))
        self._places.append(len(self._fragments))
        self.gaps.append(gap)

    def texts(self, filling: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the text of each gap."""
        found = [bytearray() for _ in self.gaps]
        for at, byte in filling:
            found[self._gap_at[at]].append(byte)
        return [bytes(text) for text in found]

    def joined(self, texts: Sequence[bytes]) -> bytes:
        """Return the text with its gaps filled."""
        places = [0, *self._places, len(self._fragments)]
        parts = [bytes(self._fragments[a:b]) for a, b in pairwise(places)]
        return b"".join(part + text for part, text in zip(parts, [*texts, b""], strict=True))


def _accepts(automaton: Automaton, text: bytes) -> bool:
    state = automaton.start
    for byte in text:
        state = automaton.step(state, byte)
        if state == DEAD:
            return False
    return automaton.is_accepting(state)
