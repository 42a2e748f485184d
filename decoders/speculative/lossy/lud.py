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
from plait.decoders.speculative.config import ACCEPTANCE_RULE, DraftOptions
from plait.decoders.speculative.context import DrafterContext

if TYPE_CHECKING:
    from torch import Tensor

RATE = 0.05  # how fast the share of guesses that stood is relearnt
START = 0.5


class LudOptions(DraftOptions):
    """How sure is sure."""

    beta: float = Field(0.9, ge=0, lt=1, description="Probability above which a guess stands.")


@dataclass(slots=True)
class LudState:
    """How often the guess at each distance stood, given that those before it did."""

    stood: list[float] = field(default_factory=list)


class LudDrafter:
    """Feeds look-ahead inputs, and judges what stands behind them."""

    name: ClassVar[str] = "lud"

    def __init__(self, options: LudOptions, context: DrafterContext) -> None:
        self._beta = options.beta
        self._vocab_size = context.vocab_size
        self._inputs = range(context.vocab_size, context.num_ids)

    def start(self, request: DecodeRequest) -> LudState:
        """Begin with the same trust at every distance."""
        return LudState([START] * len(self._inputs))

    def propose(self, requests: Sequence[DraftRequest[LudState]]) -> Sequence[Draft]:
        """Feed the look-ahead inputs, one behind the other."""
        return [
            Draft(self._inputs[: request.max_tokens], request.state.stood[: request.max_tokens])
            for request in requests
        ]

    def commit(self, state: LudState, text: Sequence[int], result: VerificationResult) -> None:
        """Learn how many guesses stood."""
        accepted_rows = {row - 1 for row in result.accepted_rows}
        for node, (token, parent) in enumerate(zip(result.token_ids, result.parents, strict=True)):
            last = result.accepted_rows[-1] - 1
            if token >= self._vocab_size and (node in accepted_rows or parent == last):
                at = token - self._vocab_size
                state.stood[at] += RATE * ((node in accepted_rows) - state.stood[at])

    def finish(self, state: LudState, text: Sequence[int]) -> None:
        """Hold nothing."""

    def pick(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Overrule no draw."""
        return None

    def trusts(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Trust a guess that is sure and no repetition."""
        return token_id != before and bool(distribution[token_id] > self._beta)


def make(options: LudOptions, *, context: DrafterContext) -> LudDrafter:
    """Build the drafter and judge."""
    return LudDrafter(options, context)


METHOD = Method(
    kind="drafter",
    name="lud",
    summary="Guesses that are sure enough stand unverified. Lossy; verified, it is `ppd`.",
    source="LUD, arXiv:2405.15208",
    target="plait.decoders.speculative.lossy.lud:make",
    options=LudOptions,
    needs=frozenset({"ppd"}),
    part=ACCEPTANCE_RULE,
    lossy=True,
)
