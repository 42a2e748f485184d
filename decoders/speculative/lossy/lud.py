"""LUD, lexical unit decoding: guesses that are sure enough stand without being verified.

Trained inputs behind the text let the model guess the tokens behind the next one. The next token is
drawn as ever; a guess stands with it while the law of its row gives it more than beta, up to the
first that doesn't. So a pass emits the units of which the model is sure. A token equal to the one
before it ends a unit: guessing ahead, models repeat themselves.

Lossy: a guess has not seen the token before it. The exact variant, which verifies the same guesses
in the next pass, is `ppd`.
Source: LUD (arXiv:2405.15208); the paper trains the whole model on units of its own sure tokens.
Departs: the model is left as it is, and the look-ahead inputs are those trained for `ppd`, so units
are shorter than the paper's. beta is its threshold; its values are not published in a way that
could be checked, and 0.9 is the middle of what its description allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.workshop import Workshop

if TYPE_CHECKING:
    from torch import Tensor

RATE = 0.05  # how fast the share of guesses that stood is relearnt
START = 0.5


class LudOptions(DraftOptions):
    """How sure is sure."""

    beta: float = Field(0.9, ge=0, lt=1, description="Probability above which a guess stands.")


@dataclass(slots=True)
class Units:
    """How often the guess at each distance stood, given that those before it did."""

    stood: list[float] = field(default_factory=list)


class Lud:
    """Feeds look-ahead inputs, and judges what stands behind them."""

    name: ClassVar[str] = "lud"

    def __init__(self, options: LudOptions, workshop: Workshop) -> None:
        self._beta = options.beta
        self._vocab_size = workshop.vocab_size
        self._inputs = range(workshop.vocab_size, workshop.num_ids)

    def start(self, request: DecodeRequest) -> Units:
        """Begin with the same trust at every distance."""
        return Units([START] * len(self._inputs))

    def propose(self, asks: Sequence[DraftRequest[Units]]) -> Sequence[Draft]:
        """Feed the look-ahead inputs, one behind the other."""
        return [Draft(self._inputs[: ask.limit], ask.state.stood[: ask.limit]) for ask in asks]

    def commit(self, state: Units, text: Sequence[int], verdict: VerificationResult) -> None:
        """Learn how many guesses stood."""
        reached = {row - 1 for row in verdict.reached}
        for node, (token, parent) in enumerate(
            zip(verdict.token_ids, verdict.parents, strict=True)
        ):
            last = verdict.reached[-1] - 1
            if token >= self._vocab_size and (node in reached or parent == last):
                at = token - self._vocab_size
                state.stood[at] += RATE * ((node in reached) - state.stood[at])

    def finish(self, state: Units, text: Sequence[int]) -> None:
        """Hold nothing."""

    def pick(self, law: Tensor, token_ids: Sequence[int]) -> int | None:
        """Overrule no draw."""
        return None

    def trusts(self, law: Tensor, token_id: int, before: int) -> bool:
        """Trust a guess that is sure and no repetition."""
        return token_id != before and bool(law[token_id] > self._beta)


def make(options: LudOptions, *, workshop: Workshop) -> Lud:
    """Build the drafter and judge."""
    return Lud(options, workshop)


METHOD = Method(
    kind="drafter",
    name="lud",
    summary="Guesses that are sure enough stand unverified. Lossy; verified, it is `ppd`.",
    source="LUD, arXiv:2405.15208",
    target="plait.decoders.speculative.lossy.lud:make",
    options=LudOptions,
    needs=frozenset({"ppd"}),
    part="judge",
    lossy=True,
)
