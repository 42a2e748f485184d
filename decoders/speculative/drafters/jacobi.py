"""Jacobi: the tokens sampled behind a rejected draft token are the next draft.

A pass samples a token at every row of a draft, also at those behind the first rejected token. These
tokens are drafted in the next step and sampled again, now with better tokens before them, until
what is fed equals what is sampled. The rest of the window is filled with guesses. As the last of
several drafters it costs nothing: it refreshes the rejected end of what the others have drafted.

Law: every draft is verified. With the request's noise G at each position, drafts iterate
x <- argmax(log p(. | x) / T + G), whose fixed point is the text itself. Each pass makes at least
one token final, so a window as long as the text needs at most as many passes as it has tokens.
Source: Santilli et al. 2023, parallel decoding by Jacobi iteration, arXiv:2305.10427; speculative
Jacobi decoding, arXiv:2410.01699. Differs from the latter in the verifier: sample and match under
shared noise instead of a ratio test. So no draft distribution is stored, and a token that is still
likely in the new context is sampled again, for which SJD++ (arXiv:2512.07503) has a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Method
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext

STABLE_PROB = 0.6  # of a token that was sampled twice in a row at its position
CHANGED_PROB = 0.25  # of another


class JacobiOptions(DraftOptions):
    """What fills the rest of the window, up to max_draft."""

    fill: Literal["random", "repeat", "off"] = Field(
        "random", description="Guesses: random tokens, the last token, or none."
    )


@dataclass(slots=True)
class JacobiState:
    """The draft of one text, from its end on."""

    seed: int
    sequence: int
    tokens: list[int] = field(default_factory=list)
    is_stable: list[bool] = field(default_factory=list)  # was fed and sampled again


class JacobiDrafter(Drafter[JacobiState]):
    """Drafts what the last pass sampled behind its first rejected token."""

    name: ClassVar[str] = "jacobi"

    def __init__(self, options: JacobiOptions, vocab_size: int) -> None:
        self._size = options.max_draft
        self._fill = options.fill
        self._vocab_size = vocab_size

    def start(self, request: DecodeRequest) -> JacobiState:
        """Return an empty window."""
        return JacobiState(request.text.noise.seed, request.text.noise.stream)

    def propose(self, requests: Sequence[DraftRequest[JacobiState]]) -> Sequence[Draft]:
        """Return the part of each window that other drafters have not filled."""
        return [self._draft(request) for request in requests]

    def observe(self, state: JacobiState, text: Sequence[int], result: VerificationResult) -> None:
        """Keep what was sampled behind the last accepted row.

        In a tree, along the first child of each node: the others are less likely.
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
        """Do nothing: there is nothing to release."""

    def _draft(self, request: DraftRequest[JacobiState]) -> Draft:
        window, drafted = request.state, len(request.draft_prefix)
        tokens = window.tokens[drafted : self._size]
        is_stable = window.is_stable[drafted : self._size]
        probs = [STABLE_PROB if stable else CHANGED_PROB for stable in is_stable]
        guesses = self._guesses(request, drafted + len(tokens))
        return Draft([*tokens, *guesses], [*probs, *[1.0 / self._vocab_size] * len(guesses)])

    def _guesses(self, request: DraftRequest[JacobiState], first: int) -> list[int]:
        """Return a guess for each position of the window from `first` on."""
        missing = range(first, self._size)
        if self._fill == "off" or not missing:
            return []
        if self._fill == "repeat":
            last = request.draft_prefix[-1] if request.draft_prefix else request.text[-1]
            return [last] * len(missing)
        window, end = request.state, len(request.text)
        words = (_word(window.seed, window.sequence, end + i) for i in missing)
        return [word % self._vocab_size for word in words]


def _word(*key: int) -> int:
    """Return a 64-bit hash of the key."""
    text = ",".join(map(str, key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def make(options: JacobiOptions, *, context: DrafterContext) -> JacobiDrafter:
    """Build the drafter."""
    return JacobiDrafter(options, context.vocab_size)


METHOD = Method(
    kind="drafter",
    name="jacobi",
    summary="The tokens sampled behind a rejected draft token, refreshed in every pass.",
    source="Speculative Jacobi decoding, arXiv:2410.01699, algorithm 1",
    target="plait.decoders.speculative.drafters.jacobi:make",
    options=JacobiOptions,
    presets={"sjd": {"max_draft": 16, "fill": "random", "always": True}},
)
