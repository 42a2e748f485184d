"""The constraint on a canvas: whatever is drawn and chosen, the answer is legal, whole and in time.

A small host stands in for the real one: its draws are random functions of the canvas, its selector
chooses at random among the admitted holes, and sometimes it makes holes of settled tokens again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from plait.decoders.constrained.spec import ConstraintKind
from plait.decoders.contract.constraint import Constraint
from plait.decoders.diffusion.constraints.prefix_matcher import (
    MASK,
    AnswerSpan,
    CanvasConstraintError,
    FilledSpan,
    Lookahead,
    PrefixMatcher,
)
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.lookaheads import driven
from tests.fixtures.word_constraint import END, LANGUAGE, Broken, WordConstraint


def words(language: Sequence[Sequence[int]] = LANGUAGE) -> WordConstraint:
    return WordConstraint(language, END)


@dataclass
class Host:
    """Settles one answer, block by block."""

    make: Callable[[], Constraint]
    vocab: int
    end: int
    block: int
    budget: int
    seed: int
    again: float = 0.0  # how often a method makes holes of what is settled
    num_forwards: int = 0
    num_reopened: int = 0

    def draw(self, name: str, legal: Sequence[int]) -> int:
        return random.Random(f"{self.seed} {name}").choice(legal)

    def redraw(self, i: int, legal: Tensor) -> int:
        left = bits(legal) or [0]
        return self.draw(f"{self.num_forwards} {i} {len(left)}", left)

    def step(self, frontier: PrefixMatcher, span: AnswerSpan) -> list[int]:
        """Return the span's tokens after one forward pass; it is as `stand` left it."""
        self.num_forwards += 1
        name = f"{span.first} {list(span.tokens)}"
        anything = range(self.vocab)
        drawn = [self.draw(f"{name} {i}", anything) for i in range(len(span.tokens))]
        hole = list(span.tokens).index(MASK)
        drawn[hole] = self.draw(f"{name} {hole}", bits(frontier.bitmask(span)))
        walk = driven(frontier.look_ahead(span, drawn), self.redraw)
        assert all(token in (MASK, new) for token, new in zip(span.tokens, walk.tokens, strict=True)
                   if token != MASK)  # fmt: skip
        return self.choose(span, walk)

    def choose(self, span: AnswerSpan, walk: Lookahead) -> list[int]:
        rng = random.Random(f"{self.seed} {self.num_forwards} choice")
        admitted = [i for i, admitted in enumerate(walk.allowed) if admitted]
        chosen = {i for i in admitted if rng.random() < 0.4 or walk.required[i]}
        chosen |= set() if chosen else {rng.choice(admitted)}
        tokens = [walk.tokens[i] if i in chosen else token for i, token in enumerate(span.tokens)]
        if rng.random() < self.again:
            tokens[rng.randrange(len(tokens))] = MASK
        return tokens

    def answer(self) -> tuple[list[int], FilledSpan]:
        """Return the answer without its end, and how the last block stood."""
        frontier = PrefixMatcher(self.make(), [self.end], self.vocab)
        text: list[int] = []
        while True:
            size = min(self.block, self.budget - len(text))
            standing = self.settle(frontier, AnswerSpan(len(text), [MASK] * size, self.budget))
            text += standing.tokens[: standing.first_masked]
            if standing.is_over or len(text) == self.budget:
                return [token for token in text if token != self.end], standing

    def settle(self, frontier: PrefixMatcher, span: AnswerSpan) -> FilledSpan:
        passed = 0
        while True:
            standing = frontier.fill_forced(span)
            self.num_reopened += len(standing.remasked)
            if not self.again:
                assert standing.first_masked >= passed, "the frontier moved back"
            passed = standing.first_masked
            if standing.is_over or standing.first_masked == len(standing.tokens):
                return standing
            assert self.num_forwards < 2_000
            here = AnswerSpan(span.first, standing.tokens, span.limit)
            span = AnswerSpan(span.first, self.step(frontier, here), span.limit)


def bits(bitmask: Tensor) -> list[int]:
    rows = [word & 0xFFFFFFFF for word in bitmask[0].tolist()]
    return [32 * i + bit for i, word in enumerate(rows) for bit in range(32) if word >> bit & 1]


@pytest.mark.parametrize("block", [1, 2, 3, 8])
@pytest.mark.parametrize("again", [0.0, 0.2])
def test_answers_are_the_words_that_fit(block: int, again: float) -> None:
    """Every answer is a whole word within its budget, and every word that fits it can come."""
    for budget in range(1, 8):
        want = {word for word in LANGUAGE if len(word) <= budget}
        hosts = [Host(words, 6, END, block, budget, seed, again) for seed in range(120)]
        have = set()
        for host in hosts:
            text, standing = host.answer()
            assert standing.is_complete or standing.is_over
            have.add(tuple(text))
        assert have == want, budget


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
@pytest.mark.parametrize("block", [1, 4, 32])
@pytest.mark.parametrize("spare", [0, 3, 40])
def test_answers_match_their_grammar_in_time(
    kind: ConstraintKind,
    text: str,
    block: int,
    spare: int,
) -> None:
    budget = max(load(kind, text).min_tokens() + spare, 1)
    vocab = len(BYTES_AND_PIECES.token_bytes)
    for seed in range(4):
        again = 0.1 if seed % 2 else 0.0
        host = Host(lambda: load(kind, text), vocab, EOS, block, budget, seed, again)
        have, _ = host.answer()
        judge = load(kind, text)
        assert len(have) <= budget
        assert all(judge.accept_token(token) for token in have), spell(have)
        assert judge.is_accepting(), spell(have)


def test_what_stands_right_of_the_frontier_gives_way() -> None:
    """A provisional token is kept as long as the frontier can reach it, and no longer."""
    frontier = PrefixMatcher(words([(0, 1, 2), (3, 4, 2), (3, 4, 4)]), [END], 6)
    standing = frontier.fill_forced(AnswerSpan(0, [MASK, MASK, 2], 3))
    assert (standing.tokens, standing.first_masked, standing.remasked) == ([MASK, MASK, 2], 0, [])
    standing = frontier.fill_forced(AnswerSpan(0, [3, MASK, 1], 3))
    assert (standing.tokens, standing.remasked, standing.forced) == ([3, 4, MASK], [2], [1])
    standing = frontier.fill_forced(AnswerSpan(0, [0, MASK, 4], 3))
    assert (standing.tokens, standing.remasked, standing.forced) == ([0, 1, 2], [2], [1, 2])
    assert standing.is_over and standing.is_complete


def test_a_lone_word_takes_no_forward_pass() -> None:
    host = Host(lambda: words([(4, 1, 4, 2)]), 6, END, 3, 9, 0)
    assert host.answer()[0] == [4, 1, 4, 2]
    assert host.num_forwards == 0


def test_standing_is_a_function_of_the_span_alone() -> None:
    """One frontier that was asked about other canvases before says what a new one says."""
    rng = random.Random(3)
    used = PrefixMatcher(words(), [END], 6)
    for _ in range(2_000):
        tokens = [rng.choice([MASK, MASK, 0, 1, 2, 3, 4, END]) for _ in range(6)]
        span = AnswerSpan(0, tokens, rng.randrange(6, 8))
        assert used.fill_forced(span) == PrefixMatcher(words(), [END], 6).fill_forced(span)


def test_admitted_tokens_have_a_witness() -> None:
    """What a walk admits, with what is settled before it, begins a word that ends in time."""
    rng = random.Random(4)
    frontier = PrefixMatcher(words(), [END], 6)

    def redraw(i: int, legal: Tensor) -> int:
        return rng.choice(bits(legal) or [0])

    for _ in range(2_000):
        limit = rng.randrange(1, 7)
        tokens = [rng.choice([MASK, MASK, MASK, 0, 1, 3, 4]) for _ in range(limit)]
        standing = frontier.fill_forced(AnswerSpan(0, tokens, limit))
        if standing.is_over or standing.first_masked == limit:
            continue
        span = AnswerSpan(0, standing.tokens, limit)
        drawn = [rng.randrange(6) for _ in range(limit)]
        walk = driven(frontier.look_ahead(span, drawn), redraw)
        assert walk.allowed[standing.first_masked]
        last = max(i for i in range(limit) if walk.allowed[i])
        begun = tuple(walk.tokens[: last + 1])
        begun, ends = (begun[:-1], True) if begun[-1] == END else (begun, False)
        fitting = [word for word in LANGUAGE if len(word) <= limit and word[: len(begun)] == begun]
        assert begun in fitting if ends else fitting, (span, drawn, walk)


def test_a_walk_goes_around_what_is_illegal() -> None:
    frontier = PrefixMatcher(words([(0, 1, 2), (0, 3, 2)]), [END], 6)
    walk = driven(frontier.look_ahead(AnswerSpan(0, [MASK] * 3, 3), [0, 4, 2]), lambda i, legal: 3)
    assert (walk.tokens, walk.allowed, walk.required) == ([0, 3, 2], [True] * 3, [False] * 3)


def test_a_budget_that_nothing_fits_is_spent_on_the_shortest_end() -> None:
    for block in (1, 2, 8):
        text, standing = Host(lambda: words([(4, 1, 4, 2), (0, 3, 3, 3, 3)]), 6, END, block, 3, 0,
                              0.2).answer()  # fmt: skip
        assert not standing.is_complete
        assert text in ([4, 1, 4], [0, 3, 3])


def test_a_complete_text_ends_where_nothing_else_fits() -> None:
    """More unfitting tokens than redraws: the end is found among the legal ones."""
    language = [(), *((token, token) for token in range(20))]
    for seed in range(10):
        host = Host(lambda: WordConstraint(language, 30), 31, 30, 1, 1, seed)
        text, standing = host.answer()
        assert text == [] and standing.is_over


def test_a_limit_may_fall_as_long_as_an_end_fits() -> None:
    frontier = PrefixMatcher(words(), [END], 6)
    assert [frontier.fits(AnswerSpan(0, [4, MASK], 9), limit) for limit in (4, 5)] == [
        False,
        True,
    ]
    assert frontier.fits(AnswerSpan(0, [0, MASK], 9), 1)


def test_a_constraint_that_contradicts_itself_is_named() -> None:
    frontier = PrefixMatcher(Broken(LANGUAGE, END), [END], 6)
    with pytest.raises(CanvasConstraintError, match="its own end"):
        driven(frontier.look_ahead(AnswerSpan(0, [MASK], 4), [0]), lambda i, legal: 0)
