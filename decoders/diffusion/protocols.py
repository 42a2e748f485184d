"""The protocols of unmasking methods: what they see of a canvas, and what they return. No torch.

A canvas is a range of positions, each unmasked or still masked. A method decides one part of a step
(Method.part):

    selector   which masked positions are unmasked now
    scorer     what is added to the logits that tokens are drawn from
    window     how long the next block is
    stopper    where the text ends before every position is unmasked
    verifier   how many draft canvases are computed in the same forward pass
    cache      which positions of a canvas with full attention are computed again
    scaffold   which literals of a constraint are unmasked before the values in front of them
    constraint which draws a constraint lets stand

Methods are stateless. What one remembers of a block is a value, its memory: None when the block
begins, then whatever its last result carried. Memories are never changed in place, so copies of a
canvas share them. The papers are named in each method's own file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from plait.decoders.contract.constraint import Constraint
    from plait.decoders.diffusion.constraints.canvas_constraint import (
        ConstrainedDraws,
        LookaheadJob,
    )
    from plait.kernels.backend import KernelBackend

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
AnyOptions = TypeVar("AnyOptions")

# Names of statistics that a method may need beside tokens and p; only these are computed.
STATISTICS = frozenset({"p2", "entropy", "top", "block_p", "leave_one_out"})
TOP = 64  # tokens whose probabilities `top` gives


@dataclass(frozen=True, slots=True)
class StepView:
    """One canvas and the draws of a forward pass at its m masked positions, by rising position.

    Only masked positions of the current block are included (for a window: all that it inspects).
    Positions are absolute: the prompt's first token is 0.
    """

    positions: Ints  # [m] masked positions, m >= 1
    tokens: Ints  # [m] drawn from the request's distribution, with the position's own noise
    p: Floats  # [m] probability of that token at temperature 1, after bans, bias and constraint
    is_end: Bools  # [m] whether the token ends the text
    start: int  # the block is start..stop-1
    stop: int
    block_tokens: Ints  # [stop - start] the block's tokens, -1 where masked
    step: int  # forward passes whose logits this block has used before
    noise_key: tuple[int, int] = (0, 0)  # (seed, stream), for methods that draw random numbers
    p2: Floats | None = None  # [m] probability of the runner-up
    entropy: Floats | None = None  # [m] nats
    top: tuple[Ints, Floats] | None = None  # [m, TOP] ids and probabilities, best first
    block_p: Floats | None = None  # [stop - start] best probability of each row, masked or not
    leave_one_out: Floats | None = None  # [stop - start] probability of an unmasked token in the
    # view without it; nan where masked


@dataclass(frozen=True, slots=True)
class Selection:
    """Which masked positions are unmasked with their tokens; if none, the best is."""

    unmask: Bools  # [m]
    memory: Any = None
    remask: Sequence[int] = ()  # unmasked positions of the block that are masked again


class Selector(Protocol):
    """Decides which positions are unmasked now."""

    @property
    def needs(self) -> frozenset[str]:
        """Names out of STATISTICS."""

    def score(self, view: StepView) -> Floats:
        """Return scores [m], higher is more confident.

        They give the order of drafts, and the position to unmask if none is selected.
        """

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select among the masked positions."""


@dataclass(frozen=True, slots=True)
class ByProbability(Generic[AnyOptions]):
    """Base of selectors whose score is the probability of the drawn token."""

    options: AnyOptions

    @classmethod
    def make(cls, options: AnyOptions, **context: Any) -> Self:
        """Return the selector; only its options matter."""
        return cls(options)

    @property
    def needs(self) -> frozenset[str]:
        """Empty: only p is read."""
        return frozenset()

    def score(self, view: StepView) -> Floats:
        """Return p."""
        return view.p


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Sparse additions to a view's logits: deltas[i] to token tokens[i] of row rows[i]."""

    rows: Ints  # [k] 0..m-1
    tokens: Ints  # [k]
    deltas: Floats  # [k]
    memory: Any = None


class Scorer(Protocol):
    """Adds to the logits; tokens and statistics are then computed again from the sums."""

    @property
    def needs(self) -> frozenset[str]:
        """Names out of STATISTICS."""

    def bias(self, view: StepView, memory: Any) -> LogitBias:
        """Return what to add, given the draws from the plain logits."""


class WindowPolicy(Protocol):
    """Decides how long the next block is."""

    def lookahead(self, remaining: int, output_length: int) -> int:
        """Return how many positions to inspect, at most `remaining`.

        output_length: positions of the canvas that belong to the output.
        """

    def length(self, view: StepView) -> int:
        """Return the length of the block that begins at view.start, at most view.stop - start."""


class Stopper(Protocol):
    """Decides where the text ends before every position is unmasked."""

    def end(self, view: StepView) -> int | None:
        """Return the position that becomes the text's end, or None."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """A canvas with full attention before a forward pass; positions are absolute."""

    length: int  # positions of the whole canvas, including the prompt
    prompt: int  # positions of the prompt
    start: int  # the block is start..stop-1
    stop: int
    positions: Ints  # [m] masked positions of the block
    newly_unmasked: Ints  # positions unmasked by the last step
    p: Floats  # [m] from the last step that drew them; 0 if none has
    step: int  # forward passes of this block before this one; 0: its first
    passes_since_refresh: int  # since the last pass of all positions, that one included; 0: none


class CachePolicy(Protocol):
    """Decides which positions are computed again; the other keys and values are reused."""

    def active_positions(self, view: CacheView) -> Ints:
        """Return the positions to compute, rising; at least one masked position of the block."""


class Verifier(Protocol):
    """Decides how many canvases are computed in one pass; the next steps verify the drafts."""

    def width(self, num_positions: int, num_rows: int, budget: int) -> int:
        """Return how many canvases to feed, the current one included.

        Args:
            num_positions: positions read off the current canvas.
            num_rows: rows that one canvas takes.
            budget: rows that the step leaves for drafts.
        """


class Scaffold(Protocol):
    """Unmasks literals early: tokens that are the constraint's only continuation."""

    def place(self, literal: Bools, p: Floats) -> Bools:
        """Return [m] which literals are unmasked.

        Args:
            literal: [m] which masked positions, rising, hold a literal in the lookahead.
            p: [m] probability of the lookahead's tokens; 1 where one is unmasked now, 0 behind the
                lookahead's end.
        """


class ConstraintMethod(Protocol):
    """Decides which of a step's draws a constraint lets stand."""

    @property
    def fills_forced(self) -> bool:
        """Whether tokens without an alternative are unmasked without a draw."""

    def check(self, constraint: Constraint) -> None:
        """Raise MethodError if the method can't work with a constraint."""

    def constrain(
        self, jobs: Sequence[LookaheadJob], *, backend: KernelBackend
    ) -> Sequence[ConstrainedDraws | str]:
        """Return what may be unmasked on each job's canvas, or the message of its error.

        Law: the first masked position is always among it, with a token that the prefix allows and
        behind which the answer can be completed in time.
        """


def top_k(scores: Floats, k: int) -> Bools:
    """Return [m] True at the k highest scores; ties go to the lower index."""
    chosen = np.zeros(len(scores), dtype=np.bool_)
    chosen[np.argsort(-scores, kind="stable")[:k]] = True
    return chosen
