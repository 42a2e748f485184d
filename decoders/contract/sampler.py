"""Which token follows each row: the contract of every sampler. No torch at import time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from plait.decoders.contract.decoder import TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.sampling.estimators import Weighed
    from plait.decoders.sampling.sampler import Draws
    from plait.decoders.sampling.state import SamplingState


class Sampler(Protocol):
    """Which token follows each row, and at what price."""

    is_weighing: ClassVar[bool]  # whether `weigh` is to be asked, under a constraint

    def sample(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Draws:
        """Draw one token per row of logits [rows, vocab], which stay as they are.

        Law: E[exp(log_mass) * 1[token = v]] == p(v) * 1[v is legal]; p: the request's distribution,
        truncated and normalised, before the constraint. (Where no legal token has a probability,
        some legal token is drawn, with log_mass -inf.)
        """

    def scores(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Tensor:
        """Return the scores [rows, vocab] to draw from: a distribution is their softmax."""

    def order(
        self, logits: Tensor, state: SamplingState, bitmask: Tensor | None = None
    ) -> Iterator[int]:
        """Yield the legal tokens of a row [1, vocab]: what `sample` draws if those before it are
        banned."""

    def weigh(
        self,
        logits: Tensor,
        state: SamplingState,
        bitmask: Tensor | None,
        passes: Callable[[int], bool],
    ) -> tuple[Weighed, float] | None:
        """Return the draw of a row [1, vocab] under bitmask and check, and its log_mass.

        Law: as in `sample`, a token being legal if the bitmask allows it and it passes. None: no
        law is to be kept, and the first token of `order` that passes is the draw.
        """

    def base_logprobs(
        self, logits: Tensor, state: SamplingState, token_ids: Sequence[int]
    ) -> Sequence[float]:
        """Return the log-probabilities of tokens of a row [1, vocab] under the base law (Drawn)."""

    def report(
        self, logits: Tensor, states: Sequence[SamplingState], token_ids: Sequence[int]
    ) -> Sequence[TokenLogprobs | None]:
        """Return what the rows' requests ask to know of these tokens."""
