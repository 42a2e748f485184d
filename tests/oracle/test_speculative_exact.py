"""Law 2 by enumeration in exact fractions: with any drafter, total variation 0 from the plain law.

The host's own walk decodes a Markov table with three tokens. Its sampler is a stub whose draws are
choices: every way they can fall out is run, and the masses of the texts are added up. Two samplers:
one draws each row afresh, the other, as the real one does, reads off each position's one noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget, Forward, Proposal
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.text import Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import Draws
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.decoders.speculative.tree import parents_of
from tests.fixtures import adversaries as stage
from tests.fixtures.adversaries import adversaries  # noqa: F401, a fixture
from tests.fixtures.enumeration import PROMPT, TARGET, UNIT, Choices, Law, law_of, outcomes, target
from tests.fixtures.word_constraint import WordConstraint

VOCAB = 3
END = 2  # of a constrained text
WORDS = [(0,), (0, 1), (1, 0, 0), (1, 1, 1, 0), (0, 1, 1, 1)]


@dataclass
class Fresh:
    """Draws every row that is read independently, when it is read."""

    is_weighing: ClassVar[bool] = False
    choices: Choices

    def sample(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Draws:
        masks = [None] * len(states) if bitmask is None else bitmask[:, 0].tolist()
        bans = banned or [()] * len(states)
        rows = [
            partial(self.draw, row, mask, ban, state.position)
            for row, mask, ban, state in zip(logits.tolist(), masks, bans, states, strict=True)
        ]
        return Draws(cast("list[int]", Lazy(rows)), [None] * len(rows), [0.0] * len(rows))

    def report(self, logits: Tensor, states: Any, token_ids: Sequence[int]) -> list[None]:
        return [None] * len(token_ids)

    def scores(
        self, logits: Tensor, states: Any, bitmask: Any = None, banned: Any = None
    ) -> Tensor:
        raise AssertionError("nobody judges")

    def weigh(self, logits: Tensor, state: Any, bitmask: Any, passes: Any) -> None:
        raise AssertionError("it does not weigh")

    def base_logprobs(self, logits: Tensor, state: Any, token_ids: Sequence[int]) -> list[float]:
        raise AssertionError("no search asks")

    def order(
        self, logits: Tensor, state: SamplingState, bitmask: Tensor | None = None
    ) -> Iterator[int]:
        row, mask = logits[0].tolist(), None if bitmask is None else int(bitmask[0, 0])
        banned: list[int] = []
        while any(mask is None or mask >> t & 1 for t in range(VOCAB) if t not in banned):
            banned.append(self.draw(row, mask, banned, state.position))
            yield banned[-1]

    def draw(
        self, row: list[float], mask: int | None, banned: Collection[int], position: int
    ) -> int:
        return self.choose(legal(row, mask, banned), position)

    def choose(self, law: Law, position: int) -> int:
        return self.choices.pick(law)


@dataclass
class Shared(Fresh):
    """Reads every row off the one noise of its position: rows of a position draw alike."""

    noise: dict[int, int] = field(default_factory=dict)

    def choose(self, law: Law, position: int) -> int:
        at = self.noise_at(position)
        return next(t for t in range(VOCAB) if UNIT * sum(law[: t + 1]) > at)

    def noise_at(self, position: int) -> int:
        if position not in self.noise:
            self.noise[position] = self.choices.pick((Fraction(1, UNIT),) * UNIT)
        return self.noise[position]


class Lazy(Sequence[int]):
    """Draws that are made when they are first looked at: the walk must not read beyond its end."""

    def __init__(self, made: Sequence[Callable[[], int]]) -> None:
        self._make, self._made = made, dict[int, int]()

    def __len__(self) -> int:
        return len(self._make)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Lazy([partial(self.__getitem__, i) for i in range(*at.indices(len(self)))])
        if at not in self._made:
            self._made[at] = self._make[at]()
        return self._made[at]


def legal(weights: Sequence[float], mask: int | None, banned: Collection[int]) -> Law:
    allowed = [t for t in range(VOCAB) if (mask is None or mask >> t & 1) and t not in banned]
    kept = [Fraction(int(weights[t]) if t in allowed else 0) for t in range(VOCAB)]
    return tuple(weight / sum(kept) for weight in kept)


class Drafting(Drafter[list[int]]):
    """A drafter that may choose, and may know the noise."""

    name: ClassVar[str] = "staged"

    def __init__(self, choices: Choices, sampler: Fresh) -> None:
        self.choices, self.sampler = choices, sampler

    def start(self, request: DecodeRequest) -> list[int]:
        return []

    def propose(self, requests: Sequence[DraftRequest[list[int]]]) -> Sequence[Draft]:
        return [
            Draft(draft.token_ids, [0.5] * len(draft.token_ids), draft.parents)
            for draft in (
                self.draft([*a.text, *a.draft_prefix], a.state, a.max_tokens) for a in requests
            )
        ]

    def observe(self, state: list[int], text: Sequence[int], result: VerificationResult) -> None:
        pass

    def finish(self, state: list[int], text: Sequence[int]) -> None:
        pass

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        raise NotImplementedError


class Likely(Drafting):
    """The chain of the likeliest tokens."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        draft_prefix = list(text)
        for _ in range(max_tokens):
            draft_prefix.append(max(range(VOCAB), key=target(draft_prefix).__getitem__))
        return Draft(draft_prefix[len(text) :])


class Coins(Drafting):
    """Two tokens drawn from a law that is not the target's."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        return Draft([int(self.choices.coin(Fraction(1, 3))) for _ in range(min(max_tokens, 2))])


class Tree(Drafting):
    """Two likely tokens, each with successors, the same token twice among them."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        best = sorted(range(VOCAB), key=lambda t: -target(text)[t])
        return Draft([best[1], best[0], 0, 2, 0, 1], parents=[-1, -1, 1, 0, 1, 2])


class CoinTree(Drafting):
    """A tree of random shape with random tokens."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        shape, token = (self.choices.coin(Fraction(1, 2)) for _ in range(2))
        return Draft([0, 2 * int(token)], parents=[-1, int(shape) - 1])


class Jacobi(Drafting):
    """What the rows behind the end of the last walk have drawn."""

    def observe(self, state: list[int], text: Sequence[int], result: VerificationResult) -> None:
        state[:] = result.drawn[result.accepted_rows[-1] + 1 :]

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        return Draft([*state, 0, 0][:2])


class Knowing(Drafting):
    """Knows the noise, and drafts what will be drawn."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        draft_prefix = list(text)
        assert isinstance(self.sampler, Shared)
        for _ in range(max_tokens):
            draft_prefix.append(self.sampler.choose(target(draft_prefix), len(draft_prefix)))
        return Draft(draft_prefix[len(text) :])


class Contrary(Knowing):
    """Knows the noise, and drafts what will not be drawn."""

    def draft(self, text: list[int], state: list[int], max_tokens: int) -> Draft:
        return Draft(
            [(token + 1) % VOCAB for token in super().draft(text, state, max_tokens).token_ids]
        )


DRAFTERS: tuple[type[Drafting], ...] = (Likely, Coins, Tree, CoinTree, Jacobi)


def decode(
    choices: Choices, sampler: Fresh, drafter: Drafting | None, length: int, words: Any
) -> tuple[int, ...]:
    """Run one sequence through the host, without an engine: a row sees the text and its path."""
    host = AutoregressiveDecoder(VOCAB, speculator=Speculator(DrafterContext(VOCAB), CostCurve()))
    named = {"name": "staged", "always": True, "max_draft": 6} if drafter else "off"
    request = DecodeRequest(
        Text(PROMPT),
        SamplingParams(),
        length,
        frozenset([END] if words else []),
        WordConstraint(words, END) if words else None,
        resolve_decoding({"drafter": named}).methods,
    )
    with nullcontext() if drafter is None else stage.on_stage(drafter):
        state = host.start(request)
    state.sampler = sampler
    text, finish = list(PROMPT), None
    while finish is None:
        (proposal,) = host.propose([state], DraftBudget(6, 1))
        (outcome,) = host.accept([state], forward(text, proposal))
        text += outcome.emit
        finish = outcome.finish
        assert not outcome.fault
        assert [proposal.token_ids[i] for i in outcome.keep] == list(
            outcome.emit[: len(outcome.keep)]
        )
    host.finish(state)
    return tuple(text[len(PROMPT) :])


def forward(text: Sequence[int], proposal: Proposal) -> Forward:
    paths = [list(text)]
    draft = Draft(proposal.token_ids, (), proposal.parents)
    for token, parent in zip(draft.token_ids, parents_of(draft), strict=True):
        paths.append([*paths[parent + 1], token])
    rows = [TARGET[path[-2], path[-1]] for path in paths]
    return Forward(torch.tensor(rows, dtype=torch.float32), [0, len(rows)])


def texts(
    sampler: type[Fresh], drafter: type[Drafting] | None, length: int, words: Any = ()
) -> dict[tuple[int, ...], Fraction]:
    def run(choices: Choices) -> tuple[int, ...]:
        draws = sampler(choices)
        made = drafter(choices, draws) if drafter else None
        return decode(choices, draws, made, length, words)

    return outcomes(run)


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_fresh_draws_follow_the_law(drafter: type[Drafting]) -> None:
    length = 4 if drafter in (Likely, Tree) else 3
    assert texts(Fresh, drafter, length) == law_of(target, PROMPT, length)


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("drafter", [*DRAFTERS, Knowing, Contrary])
def test_shared_noise_gives_the_text_without_drafts(drafter: type[Drafting]) -> None:
    """Not the law alone: for every noise, the text is the one that it gives without drafts."""
    length = 3

    def run(choices: Choices) -> tuple[int, ...]:
        draws = Shared(choices)
        have = decode(choices, draws, drafter(choices, draws), length, ())
        assert have == decode(choices, draws, None, length, ())
        return have

    assert outcomes(run) == law_of(target, PROMPT, length)


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("drafter", [Likely, Coins, Tree])
def test_constrained_texts_follow_the_law_without_drafts(
    drafter: type[Drafting], length: int
) -> None:
    """Words that don't fit the budget are steered away from, on the same rows."""
    have, want = texts(Fresh, drafter, length, WORDS), texts(Fresh, None, length, WORDS)
    assert have == want
    assert set(want) == {word for word in WORDS if len(word) <= length}
