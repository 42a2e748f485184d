"""What unmasking methods see of one canvas after a forward pass, and what they answer. No torch.

A canvas is a run of positions, some settled, the others holes. A method decides one part of a step
(Method.part):

    selector   which holes are settled now
    scorer     what is added to the scores that tokens are drawn from
    window     how far the next block reaches
    stopper    where the text ends before every hole is settled
    verifier   which canvases are tried ahead in the same forward pass
    cache      which positions of a canvas with full attention are computed again
    scaffold   which literals of a constraint are settled ahead of the values before them

Methods hold no state. What one remembers of a block is a value, its memory: None when the block
begins, then whatever its last answer carried. Values aren't changed in place, so a branch of a
canvas is a copy of references. The sources are those of the methods, each in its own file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
AnyOptions = TypeVar("AnyOptions")

# Names of statistics that a method may need beside tokens and p; only these are computed.
STATISTICS = frozenset({"p2", "entropy", "top", "block_p", "shadow"})
TOP = 64  # tokens whose probabilities `top` gives


@dataclass(frozen=True, slots=True)
class StepView:
    """One canvas and what a forward pass said of its open holes; h of them, by rising position.

    Only holes of the current block are open (for a window: all holes that it looks ahead to).
    Positions are absolute: the prompt's first token is 0.
    """

    holes: Ints  # [h] positions, h >= 1
    tokens: Ints  # [h] what the request's law draws there, with the position's own noise
    p: Floats  # [h] probability of that token at temperature 1, after bans, bias and constraint
    is_end: Bools  # [h] whether it ends the text
    start: int  # the block is start..stop-1
    stop: int
    settled: Ints  # [stop - start] the block's tokens, -1 at holes
    step: int  # forward passes whose logits this block has used before
    key: tuple[int, int] = (0, 0)  # (seed, sequence index), for methods that draw for themselves
    p2: Floats | None = None  # [h] probability of the runner-up
    entropy: Floats | None = None  # [h] nats
    top: tuple[Ints, Floats] | None = None  # [h, TOP] ids and probabilities, best first
    block_p: Floats | None = None  # [stop - start] best probability of every row, settled or not
    shadow: Floats | None = None  # [stop - start] what the shadow row gives a settled token; nan
    # at holes


@dataclass(frozen=True, slots=True)
class Selection:
    """Which open holes are settled with their tokens; if none, the host settles the best one."""

    settle: Bools  # [h]
    memory: Any = None
    reopen: Sequence[int] = ()  # settled positions of the block that become holes again


class Selector(Protocol):
    """Decides which holes are settled now."""

    @property
    def needs(self) -> frozenset[str]:
        """Names out of STATISTICS."""

    def score(self, view: StepView) -> Floats:
        """Return [h], greater is surer: the order of drafts, and who is settled if none passes."""

    def select(self, view: StepView, memory: Any) -> Selection:
        """Choose among the open holes."""


@dataclass(frozen=True, slots=True)
class ByProbability(Generic[AnyOptions]):
    """Base of selectors for which a hole is as sure as the token drawn there is probable."""

    options: AnyOptions

    @classmethod
    def make(cls, options: AnyOptions, **context: Any) -> Self:
        """Return the selector; nothing but its options matters to it."""
        return cls(options)

    @property
    def needs(self) -> frozenset[str]:
        """Nothing but p."""
        return frozenset()

    def score(self, view: StepView) -> Floats:
        """Return p."""
        return view.p


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Sparse additions to the holes' logits; entry i adds deltas[i] to token tokens[i] of a row."""

    rows: Ints  # [k] 0..h-1
    tokens: Ints  # [k]
    deltas: Floats  # [k]
    memory: Any = None


class Scorer(Protocol):
    """Adds to the scores; tokens and statistics are then computed again from the sums."""

    @property
    def needs(self) -> frozenset[str]:
        """Names out of STATISTICS."""

    def bias(self, view: StepView, memory: Any) -> LogitBias:
        """Return what to add, given what the plain scores say."""


class WindowPolicy(Protocol):
    """Decides how far the next block reaches."""

    def reach(self, remaining: int, answer: int) -> int:
        """Return how many positions to look ahead; answer: positions of the whole canvas."""

    def length(self, view: StepView) -> int:
        """Return the length of the block that begins at view.start, at most view.stop - start."""


class Stopper(Protocol):
    """Decides where the text ends before every hole is settled."""

    def end(self, view: StepView) -> int | None:
        """Return the position that becomes the text's end; all behind it is given up."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """A canvas with full attention before a forward pass; positions are absolute."""

    length: int  # positions of the whole canvas, the prompt among them
    prompt: int  # positions of the prompt
    start: int  # the block is start..stop-1
    stop: int
    holes: Ints  # [h] open holes
    fresh: Ints  # positions settled by the last step
    p: Floats  # [h] of the last step that saw them; 0 where none has
    step: int  # forward passes of this block before this one; 0: its first
    age: int  # forward passes from the last of all positions on, that one counted; 0: none was


class CachePolicy(Protocol):
    """Decides which positions are computed again; the keys and values of the others stay."""

    def rows(self, view: CacheView) -> Ints:
        """Return the positions to feed, rising; those of all open holes that may be settled."""


class Verifier(Protocol):
    """Tries canvases ahead: drafts that the next forward pass proves or throws away."""

    def width(self, holes: int, rows: int, room: int) -> int:
        """Return how many canvases to feed, the certain one among them.

        holes: open holes of that one. rows: its size. room: rows left for drafts in this step.
        """


class Scaffold(Protocol):
    """Settles literals: tokens that a constraint leaves no alternative to, values permitting."""

    def place(self, literal: Bools, p: Floats) -> Bools:
        """Return which literals are settled.

        Args:
            literal: [h] of the open holes, rising, what is a literal on the witness.
            p: [h] of the tokens on the witness; 1 where one is settled now, 0 behind its end.
        """


def top_k(scores: Floats, k: int) -> Bools:
    """Mark the k greatest of scores [h]; among equals the lower index wins."""
    chosen = np.zeros(len(scores), dtype=np.bool_)
    chosen[np.argsort(-scores, kind="stable")[:k]] = True
    return chosen
