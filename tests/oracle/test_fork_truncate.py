"""What decoding remembers of a sequence is derived from its text: the law of forks and cuts.

A state that is cut to n tokens behaves as one that has come no further than n tokens, and as one
that is built from the first n tokens; a fork and its origin never see each other again.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest, Forward, SearchNeeds
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

VOCAB = 6
PROMPT = [1, 2, 3]
CASES: dict[str, SamplingParams] = {
    "plain": SamplingParams(temperature=1.5),
    "greedy": SamplingParams(temperature=0.0, logprobs=2),
    "penalties": SamplingParams(frequency_penalty=0.8, presence_penalty=0.4),
    "repetition": SamplingParams(repetition_penalty=1.7, temperature=1.3),
    "bad words": SamplingParams(temperature=2.0, bad_words=((1, 2), (3,), (0, 4, 0))),
    "truncated": SamplingParams(top_k=3, min_tokens=4, logprobs=1),
}


class ForkTruncateLaw(ABC):
    """The law, for any derived state: `Run` is the state with its text."""

    num_tokens: ClassVar[int] = 12  # that a run has at most

    @abstractmethod
    def start(self, seed: int, output: list[int]) -> Any:
        """Return the run of a text that has this output already."""

    @abstractmethod
    def step(self, run: Any) -> Any:
        """Advance by what the state says, and return all that can be seen of it; None: ended."""

    @abstractmethod
    def fork(self, run: Any, output: list[int]) -> Any:
        """Return a fork of a run, with the same noise, whose text has this output."""

    @abstractmethod
    def truncate(self, run: Any, num_output: int) -> None:
        """Cut the text of a run."""

    @abstractmethod
    def output(self, run: Any) -> list[int]:
        """Return the output of a run."""

    def grown(self, seed: int, num_output: int) -> Any:
        """Return a run that has lived through at most so many tokens."""
        run = self.start(seed, [])
        while len(self.output(run)) < num_output and self.step(run) is not None:
            pass
        return run

    def rest(self, run: Any) -> list[Any]:
        """Run to the end; return what was seen."""
        return list(iter(lambda: self.step(run), None))

    @pytest.mark.parametrize("seed", range(6))
    def test_a_cut_state_is_the_one_that_came_no_further(self, seed: int) -> None:
        rng = random.Random(seed)
        whole = self.output(self.grown(seed, self.num_tokens))
        for _ in range(6):
            keep = rng.randint(0, len(whole))
            run = self.grown(seed, rng.randint(keep, self.num_tokens))
            self.truncate(run, rng.randint(keep, len(self.output(run))))
            self.truncate(run, keep)
            assert self.output(run) == whole[:keep]
            if keep < len(whole):
                assert self.rest(run) == self.rest(self.grown(seed, keep))

    @pytest.mark.parametrize("seed", range(6))
    def test_a_fork_is_the_state_of_its_text(self, seed: int) -> None:
        rng = random.Random(seed)
        whole = self.output(self.grown(seed, self.num_tokens))
        for _ in range(6):
            keep = rng.randrange(max(len(whole), 1))
            origin = self.grown(seed, rng.randint(keep, self.num_tokens))
            fork = self.fork(origin, whole[:keep])
            assert self.rest(fork) == self.rest(self.grown(seed, keep))

    @pytest.mark.parametrize("seed", range(6))
    def test_a_fork_and_its_origin_never_see_each_other_again(self, seed: int) -> None:
        for keep in range(self.num_tokens // 2):
            want = self.rest(self.grown(seed, keep))
            if not want:
                return
            origin = self.grown(seed, keep)
            forks = [self.fork(origin, self.output(origin)) for _ in range(2)]
            assert self.rest(forks[0]) == want
            assert self.rest(origin) == want
            assert self.rest(forks[1]) == want

    @pytest.mark.parametrize("seed", range(6))
    def test_a_fork_that_goes_on_otherwise_is_built_as_any_text(self, seed: int) -> None:
        for keep in range(3):
            origin = self.grown(seed, keep + 1)
            for other in self.others(seed, keep):
                fork = self.fork(origin, other)
                assert self.rest(fork) == self.rest(self.start(seed, other))

    def others(self, seed: int, keep: int) -> list[list[int]]:
        """Return outputs that agree with a run's in their first tokens and are legal."""
        shared = self.output(self.grown(seed, keep))
        return [[*shared, token] for token in range(VOCAB)] if len(shared) == keep else []


class Run:
    """A state of the autoregressive decoder and its text."""

    def __init__(self, state: AutoregressiveState) -> None:
        self.state, self.has_ended = state, False

    @property
    def text(self) -> Text:
        return self.state.request.text


class AutoregressiveLaw(ForkTruncateLaw):
    """The decoder on the table model."""

    params: SamplingParams
    words: ClassVar[list[tuple[int, ...]]] = []
    vocab: ClassVar[int] = VOCAB
    decoder: ClassVar[AutoregressiveDecoder] = AutoregressiveDecoder(VOCAB)

    def constraint(self) -> Constraint | None:
        return None

    def start(self, seed: int, output: list[int]) -> Run:
        constraint = self.constraint()
        assert constraint is None or all(map(constraint.accept_token, output))
        params = replace(self.params, seed=seed)
        text = Text(PROMPT, NoiseKey(seed), output)
        request = DecodeRequest(
            text,
            params,
            self.num_tokens,
            frozenset([self.end]),
            constraint,
            search=SearchNeeds(num_alternatives=3),
        )
        return Run(self.decoder.start(request))

    @property
    def end(self) -> int:
        return END

    def step(self, run: Run) -> Any:
        if run.has_ended:
            return None
        logits = text_logits(run.text.token_ids, self.vocab)[None]
        (outcome,) = self.decoder.accept([run.state], Forward(logits, [0, 1]))
        assert not outcome.fault, outcome.fault
        run.has_ended = outcome.finish is not None
        seen = (outcome.emit, outcome.finish, outcome.stop_token, outcome.alternatives)
        return (*seen, outcome.logprobs, outcome.log_mass)

    def fork(self, run: Run, output: list[int]) -> Run:
        text = Text(PROMPT, run.text.noise, output)
        return Run(self.decoder.fork(run.state, text))

    def truncate(self, run: Run, num_output: int) -> None:
        run.text.truncate(len(PROMPT) + num_output)
        run.state = self.decoder.truncate(run.state, run.text)
        run.has_ended = False

    def output(self, run: Run) -> list[int]:
        return run.text.output


@pytest.mark.parametrize("params", CASES.values(), ids=list(CASES), scope="class")
class TestAutoregressive(AutoregressiveLaw):
    @pytest.fixture(autouse=True)
    def _use(self, params: SamplingParams) -> None:
        self.params = params


class TestWords(AutoregressiveLaw):
    """A finite language: texts end with stop tokens, or because nothing else may follow."""

    params = SamplingParams(temperature=2.0, frequency_penalty=0.3)

    def constraint(self) -> Constraint:
        return WordConstraint(LANGUAGE, END)

    def others(self, seed: int, keep: int) -> list[list[int]]:
        return [list(word[: keep + 1]) for word in LANGUAGE if len(word) > keep + 1]


class TestTightBudget(AutoregressiveLaw):
    """A grammar with a budget that is nearly spent: the shortest end must be followed."""

    num_tokens = 28  # one more than the shortest answer has
    params = SamplingParams(temperature=2.0)
    vocab = len(BYTES_AND_PIECES.token_bytes)
    decoder = AutoregressiveDecoder(vocab)

    @property
    def end(self) -> int:
        return EOS

    def constraint(self) -> Constraint:
        return load(*GRAMMARS[0])

    def others(self, seed: int, keep: int) -> list[list[int]]:
        return []  # a closing state is not built from its text: it has begun to follow an end
