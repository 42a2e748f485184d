"""LUD, lexical unit decoding: confident guesses are emitted without verification.

Trained inputs behind the text make the model guess the tokens after the next one. The next token is
sampled as always. The guesses behind it are emitted with it, up to the first that has a probability
of at most beta in its row. So a pass emits the unit of which the model is confident. A token equal
to the one before it ends a unit, because models that guess ahead repeat tokens.

Lossy: the row of a guess has not read the token before it. The exact variant, which verifies the
same guesses in the next pass, is `ppd`.
Source: LUD (arXiv:2405.15208), which trains the whole model on units of its own confident tokens.
Differs: the model is not trained, and the inputs are those of `ppd`, so units are shorter than the
paper's. beta is its threshold, whose value is not published; 0.9 is the middle of the range that
its description allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import ACCEPTANCE_RULE, DraftOptions
from plait.decoders.speculative.context import DrafterContext

if TYPE_CHECKING:
    from torch import Tensor

RATE = 0.05  # weight of a new observation in the moving average
START = 0.5  # the average before any observation


class LudOptions(DraftOptions):
    """The threshold."""

    beta: float = Field(0.9, ge=0, lt=1, description="Probability above which a guess is emitted.")


@dataclass(slots=True)
class LudState:
    """How often the guess at each distance was emitted, given that those before it were."""

    emitted_share: list[float] = field(default_factory=list)


class LudDrafter(Drafter[LudState]):
    """Feeds the look-ahead inputs, and decides which guesses are emitted."""

    name: ClassVar[str] = "lud"

    def __init__(self, options: LudOptions, context: DrafterContext) -> None:
        self._beta = options.beta
        self._vocab_size = context.vocab_size
        self._inputs = range(context.vocab_size, context.num_ids)

    def start(self, request: DecodeRequest) -> LudState:
        """Return the state: the same average at every distance."""
        return LudState([START] * len(self._inputs))

    def propose(self, requests: Sequence[DraftRequest[LudState]]) -> Sequence[Draft]:
        """Return the look-ahead inputs as a chain."""
        return [
            Draft(
                self._inputs[: request.max_tokens],
                request.state.emitted_share[: request.max_tokens],
            )
            for request in requests
        ]

    def observe(self, state: LudState, text: Sequence[int], result: VerificationResult) -> None:
        """Update the averages with the guesses that were emitted."""
        accepted_rows = {row - 1 for row in result.accepted_rows}
        for node, (token, parent) in enumerate(zip(result.token_ids, result.parents, strict=True)):
            last = result.accepted_rows[-1] - 1
            if token >= self._vocab_size and (node in accepted_rows or parent == last):
                at = token - self._vocab_size
                state.emitted_share[at] += RATE * (
                    (node in accepted_rows) - state.emitted_share[at]
                )

    def finish(self, state: LudState, text: Sequence[int]) -> None:
        """Do nothing: there is nothing to release."""

    def select(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return None: sampled tokens are kept."""
        return None

    def accepts_unverified(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Tell whether a guess is confident and no repetition."""
        return token_id != before and bool(distribution[token_id] > self._beta)


def make(options: LudOptions, *, context: DrafterContext) -> LudDrafter:
    """Build the drafter, which is an acceptance rule as well."""
    return LudDrafter(options, context)


METHOD = Method(
    kind="drafter",
    name="lud",
    summary="Emits confident guesses unverified. Lossy; the exact variant is `ppd`.",
    source="LUD, arXiv:2405.15208",
    target="plait.decoders.speculative.lossy.lud:make",
    options=LudOptions,
    needs=frozenset({"ppd"}),
    part=ACCEPTANCE_RULE,
    lossy=True,
)
