"""Jacobi: what the rows behind a wrong draft have drawn are the next drafts.

A pass draws a token at every row of a draft, those behind the first wrong one included. Moved to
where the text has got to they are drafted again, and drawn again in the light of better tokens
before them, until what is fed is what is drawn. Behind them a window is filled with guesses. In a
stack it costs nothing: put last, it refreshes the tail of whatever the others have drafted.

Law: verified as every draft; with the request's noise at each position the drafts iterate
x <- argmax(log p(. | x) / T + G), whose fixed point is the text itself. At least one token becomes
final a pass, so a window as long as the text ends in as many passes as it has tokens, or fewer.
Source: Santilli et al. 2023, parallel decoding by Jacobi iteration, arXiv:2305.10427; speculative
Jacobi decoding, arXiv:2410.01699. Departs from the latter in its verifier: sample and match under
shared noise instead of a ratio test, so no law of a draft is stored, and a token that the new
context leaves likely is drawn again by itself, which SJD++ (arXiv:2512.07503) gets by a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext

STABLE_PROB, CHANGED_PROB = (
    0.6,
    0.25,
)  # chance of a token that was drawn twice in a row, and of another


class JacobiOptions(DraftOptions):
    """What fills a window that is shorter than max_draft."""

    fill: Literal["random", "repeat", "off"] = Field(
        "random", description="Guesses: random tokens, the text's last token, or none."
    )


@dataclass(slots=True)
class JacobiState:
    """What is guessed of one text, from its end on."""

    seed: int
    sequence: int
    tokens: list[int] = field(default_factory=list)
    is_stable: list[bool] = field(default_factory=list)  # fed and drawn again


class JacobiDrafter:
    """Drafts what the last pass drew behind its first wrong draft."""

    name: ClassVar[str] = "jacobi"

    def __init__(self, options: JacobiOptions, vocab_size: int) -> None:
        self._size = options.max_draft
        self._fill = options.fill
        self._vocab_size = vocab_size

    def start(self, request: DecodeRequest) -> JacobiState:
        """Guess nothing yet."""
        return JacobiState(request.sampling.seed, request.sequence_index)

    def propose(self, requests: Sequence[DraftRequest[JacobiState]]) -> Sequence[Draft]:
        """Return the windows as far as others have not filled them."""
        return [self._draft(request) for request in requests]

    def commit(self, state: JacobiState, text: Sequence[int], result: VerificationResult) -> None:
        """Keep what was drawn behind the last row that was reached.

        In a tree, along the first child of each node: others are less likely still.
        """
        state.tokens, state.is_stable = [], []
        child = {parent: node for node, parent in reversed([*enumerate(result.parents)])}
        node = child.get(result.accepted_rows[-1] - 1)
        while node is not None:
            after = child.get(node)
            token = result.drawn[node + 1]
            state.tokens.append(token)
            state.is_stable.append(after is not None and result.token_ids[after] == token)
            node = after

    def finish(self, state: JacobiState, text: Sequence[int]) -> None:
        """Hold nothing."""

    def _draft(self, request: DraftRequest[JacobiState]) -> Draft:
        window, drafted = request.state, len(request.draft_prefix)
        tokens = window.tokens[drafted : self._size]
        acceptance_probs = [
            STABLE_PROB if stable else CHANGED_PROB
            for stable in window.is_stable[drafted : self._size]
        ]
        guesses = self._guesses(request, drafted + len(tokens))
        acceptance_prob = 1.0 / self._vocab_size
        return Draft([*tokens, *guesses], [*acceptance_probs, *[acceptance_prob] * len(guesses)])

    def _guesses(self, request: DraftRequest[JacobiState], first: int) -> list[int]:
        """Return a token for each place of the window from one on."""
        places = range(first, self._size)
        if self._fill == "off" or not places:
            return []
        if self._fill == "repeat":
            return [request.draft_prefix[-1] if request.draft_prefix else request.text[-1]] * len(
                places
            )
        window, end = request.state, len(request.text)
        words = (_word(window.seed, window.sequence, end + place) for place in places)
        return [word % self._vocab_size for word in words]


def _word(*key: int) -> int:
    """Return 64 random bits that are a function of the key."""
    text = ",".join(map(str, key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def make(options: JacobiOptions, *, context: DrafterContext) -> JacobiDrafter:
    """Build the drafter."""
    return JacobiDrafter(options, context.vocab_size)


METHOD = Method(
    kind="drafter",
    name="jacobi",
    summary="What the rows behind a wrong draft have drawn, refreshed pass by pass.",
    source="Speculative Jacobi decoding, arXiv:2410.01699, algorithm 1",
    target="plait.decoders.speculative.drafters.jacobi:make",
    options=JacobiOptions,
    presets={"sjd": {"max_draft": 16, "fill": "random", "always": True}},
)
