"""What may come next under a grammar: an automaton over bytes, and its masks over a vocabulary.

A grammar is a table of operations, each a tuple whose first part is its `Kind`. The automaton walks
it byte by byte, determinised while it runs. `naive.py` is the oracle, and what serves where there
was no compiler; C++ beside it is compiled into `plait.kernels._grammar`, which needs no torch.
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
__all__ += ["UNREACHABLE", "make_automaton", "make_vocabulary"]

UNREACHABLE = 1 << 30  # more tokens than any budget: the vocabulary can not spell the text
DEAD = -1  # the state behind a byte that does not fit
DfaParts = tuple[bytes, int, bytes, bytes, bytes]  # see kernels/_grammar.pyi


class Kind(IntEnum):
    """What an operation of a table does; the further parts of its tuple stand beside it."""

    TEXT = 0  # bytes
    SET = 1  # bytes: one of them
    SEQ = 2  # operations, one after the other
    CHOICE = 3  # operations: one of them
    REPEAT = 4  # operation, least, most (-1: without end)
    RULE = 5  # operation; may lead back to itself
    LISTED = 6  # texts as bytes, sorted, each once: one of them
    LEXEME = 7  # number of an automaton, least and most characters (-1: without end)


class TooLarge(ValueError):
    """A part of the grammar needs more than anything may need; the message says what."""


class Automaton(Protocol):
    """All that was learnt about one grammar; shared by its sequences, used by one thread.

    States are numbers that only this automaton knows. Laws: a byte can be stepped exactly when some
    text of the grammar goes on so; `closing_tokens` spells the end of a text, and after its first
    token the new state's are at least one fewer.
    """

    @property
    def start(self) -> int:
        """The state before the first byte."""
        ...

    @property
    def num_bytes(self) -> int:
        """About how much memory is in use."""
        ...

    def step(self, state: int, byte: int) -> int:
        """Return the state behind one more byte, or DEAD.

        Raises:
            IndexError: the state is DEAD, or another automaton's.
        """
        ...

    def advance(self, state: int, token_id: int) -> int:
        """Return the state behind one more token, or DEAD."""
        ...

    def write_mask(self, state: int, row: NDArray[np.int32]) -> None:
        """Write the tokens that can follow to row [words], a bit each; further words are cleared.

        Cost: some 0.3 ms for a state in which most tokens can, once; microseconds from then on.
        """
        ...

    def is_accepting(self, state: int) -> bool:
        """Tell whether the text may end here."""
        ...

    def is_final(self, state: int) -> bool:
        """Tell whether it must."""
        ...

    def num_closing(self, state: int) -> int:
        """Return the number of `closing_tokens`."""
        ...

    def closing_tokens(self, state: int) -> list[int]:
        """Return tokens that lead to an end, about as few as can be; none where the text may end.

        A bound from above of the fewest: alternatives are compared by their own cost.
        """
        ...

    def forced(self, state: int) -> tuple[list[int], list[int]]:
        """Return tokens of the text that every end goes on with, in two parts.

        In front of those of the first part every legal token is a prefix of the forced text; over
        the end of the second part's other legal tokens reach.
        """
        ...


def available() -> bool:
    """Tell whether the compiled automaton serves."""
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


def make_vocabulary(spelled: Sequence[bytes]) -> Any:
    """Return the tokens in the form that `make_automaton` wants; b"": never legal."""
    module = _load()
    if module is not None:
        return module.Vocabulary(spelled)
    from plait.kernels.grammar.reference import Vocabulary  # noqa: PLC0415, only where it serves

    return Vocabulary(spelled)


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
        from plait.kernels.grammar.reference import NaiveAutomaton  # noqa: PLC0415, as above

        return NaiveAutomaton(operations, dfas, root, vocabulary)
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
