"""Grammar automaton: which tokens may come next, as bitmasks over a vocabulary.

A grammar is a table of operations; each is a tuple whose first field is its `OpKind`. The automaton
reads bytes, and its deterministic states are built lazily, while it runs. `reference.py` is the
test oracle and the fallback without compiled kernels. The C++ sources in this folder become
`plait.kernels._grammar`, which does not need torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEAD", "Automaton", "DfaParts", "Kind", "TooLarge", "available", "extension"]
__all__ += ["SHARED_BYTES", "UNREACHABLE", "extension_or_none", "make_automaton", "make_vocabulary"]

UNREACHABLE = 1 << 30  # token count of a text that the vocabulary cannot spell
SHARED_BYTES = 32 * 2**20  # of one vocabulary, see make_vocabulary
DEAD = -1  # the state after a byte that the grammar does not allow
DfaParts = tuple[bytes, int, bytes, bytes, bytes]  # see kernels/_grammar.pyi


class OpKind(IntEnum):
    """The first field of an operation; the comment lists the other fields of its tuple."""

    TEXT = 0  # bytes
    SET = 1  # bytes: one of them
    SEQ = 2  # operations, one after the other
    CHOICE = 3  # operations: one of them
    REPEAT = 4  # operation, minimum, maximum (-1: no maximum)
    RULE = 5  # operation; may be recursive
    LISTED = 6  # sorted, distinct texts as bytes: one of them
    LEXEME = 7  # index of a DFA, minimum and maximum number of characters (-1: no maximum)
    ANY_ORDER = 8  # operations in any order; flags of each as bytes (1: it must be there, 2: it may
    # be there more than once); the operation between two of them; minimum and maximum number
    MARK = 9  # bits of Automaton.marks: the empty text


class TooLarge(ValueError):
    """A part of the grammar is over a limit; the message says which one."""


class Automaton(Protocol):
    """The lazily built automaton of one grammar: shared by its sequences, used by one thread.

    A state is a number that is valid for this automaton only. Laws: `step` accepts a byte exactly
    when a text of the grammar continues with it; `closing_tokens` complete the text, and after the
    first of them the next state has at least one closing token fewer.
    """

    @property
    def start(self) -> int:
        """The state before the first byte."""
        ...

    @property
    def num_bytes(self) -> int:
        """Approximate memory in use."""
        ...

    def step(self, state: int, byte: int) -> int:
        """Return the state after one more byte, or DEAD.

        Raises:
            IndexError: the state is DEAD, or belongs to another automaton.
        """
        ...

    def advance(self, state: int, token_id: int) -> int:
        """Return the state after one more token, or DEAD."""
        ...

    def write_mask(self, state: int, row: NDArray[np.int32]) -> None:
        """Write the bitmask of legal next tokens to row [words]; words beyond the vocabulary are 0.

        Cost: about 0.3 ms the first time for a state with many legal tokens, then microseconds.
        """
        ...

    def successors(self, state: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens of the state's mask, rising, and the states behind them."""
        ...

    def is_accepting(self, state: int) -> bool:
        """Return whether the text may end here."""
        ...

    def is_final(self, state: int) -> bool:
        """Return whether the text must end here: no byte can follow."""
        ...

    def num_closing(self, state: int) -> int:
        """Return the number of `closing_tokens`."""
        ...

    def closing_tokens(self, state: int) -> list[int]:
        """Return a short list of tokens that completes the text; [] where the text may end.

        Its length is an upper bound of the minimum: alternatives are compared by their own cost,
        not in context.
        """
        ...

    def forced(self, state: int) -> tuple[list[int], list[int]]:
        """Return tokens that spell the forced text, the bytes that every completion begins with.

        The first list ends where every legal token still lies inside the forced text. The second
        list spells the rest of it: there, other legal tokens reach beyond its end.
        """
        ...

    def marks(self, state: int) -> int:
        """Return the bits of the MARK operations that the last byte has led over.

        They are told of a state: a mark stands where no other way leads to the same state.
        """
        ...


def available() -> bool:
    """Return whether the compiled automaton is used."""
    return _load() is not None


def extension() -> Any:
    """Return the compiled module.

    Raises:
        RuntimeError: it was not built.
    """
    module = _load()
    if module is None:
        raise RuntimeError("plait was installed without its compiled grammar kernels")
    return module


def extension_or_none() -> Any:
    """Return the compiled module; None if it was not built."""
    return _load()


def make_vocabulary(spelled: Sequence[bytes], shared_bytes: int = SHARED_BYTES) -> Any:
    """Return the vocabulary for `make_automaton`, given each token's bytes; b"": never legal.

    shared_bytes: what one automaton finds out about the inside of strings is kept for the others,
    in about so much memory; 0: nothing is. Masks do not depend on it.
    """
    module = _load()
    if module is not None:
        return module.Vocabulary(spelled, shared_bytes)
    from plait.kernels.grammar.reference import ReferenceVocabulary  # noqa: PLC0415, fallback

    return ReferenceVocabulary(spelled)


def make_automaton(
    operations: Sequence[tuple[Any, ...]], dfas: Sequence[DfaParts], root: int, vocabulary: Any
) -> Automaton:
    """Return the automaton of a table.

    The grammar must be free of dead ends and of left recursion.

    Raises:
        TooLarge: a part's shortest text takes more tokens than any answer has.
    """
    module = _load()
    if module is None:
        from plait.kernels.grammar.reference import ReferenceAutomaton  # noqa: PLC0415, as above

        return ReferenceAutomaton(operations, dfas, root, vocabulary)
    try:
        made: Automaton = module.Automaton(operations, dfas, root, vocabulary)
    except module.TooLargeError as error:
        raise TooLarge(str(error)) from None
    return made


@cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module("plait.kernels._grammar")
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "the compiled grammar automaton is missing, the slow one serves (%s)", error
        )
        return None
