"""The autoregressive host's laws by enumeration: the sampled text, constraints, budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import sqrt
from typing import Any

import pytest
import torch

from plait.decoders.autoregressive import steering
from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.decoding import DecodingSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.engine import Engine
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Delta, Failed
from tests.fixtures.engines import request, run, table_engine
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, Broken, WordConstraint

VOCAB = 6
PROMPT = [1, 2, 3]
COMPILED = CompiledConstraint("words", b"", 0)


def engine(words: Sequence[Sequence[int]] = (), **settings: Any) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    return table_engine(
        {host.name: host},
        settings=EngineSettings(**settings),
        load_constraint=lambda compiled: WordConstraint(words, END),
    )


def texts(sampling: Sequence[SamplingParams], max_tokens: int, **fields: Any) -> list[list[int]]:
    words = fields.pop("words", ())
    if words:
        fields |= {"constraint": COMPILED, "stop_token_ids": [END]}
    requests = [
        request(f"r{i}", PROMPT, max_tokens, sampling=each, **fields)
        for i, each in enumerate(sampling)
    ]
    have = run(engine(words), requests)
    return [have[f"r{i}", 0].tokens for i in range(len(requests))]


def law(temperature: float, length: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Enumerate the exact law of texts of a length."""
    for text in product(range(VOCAB), repeat=length):
        mass = 1.0
        for i, token in enumerate(text):
            row = text_logits([*PROMPT, *text[:i]], VOCAB).double() / temperature
            mass *= torch.softmax(row, 0)[token].item()
        yield text, mass


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_texts_follow_the_law(temperature: float) -> None:
    draws = 1_500
    sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(draws)]
    have = Counter(map(tuple, texts(sampling, 2)))
    for text, mass in law(temperature, 2):
        error = 4 * sqrt(mass * (1 - mass) / draws) + 1e-9
        assert abs(have[text] / draws - mass) <= error, text


def test_siblings_are_independent_draws() -> None:
    draws = 1_500
    requests = [
        request(f"r{i}", PROMPT, 1, n=2, sampling=SamplingParams(seed=i)) for i in range(draws)
    ]
    have = run(engine(), requests)
    pairs = Counter((have[f"r{i}", 0].tokens[0], have[f"r{i}", 1].tokens[0]) for i in range(draws))
    masses = [mass for _, mass in law(1.0, 1)]
    for first, second in product(range(VOCAB), repeat=2):
        mass = masses[first] * masses[second]
        assert abs(pairs[first, second] / draws - mass) <= 4 * sqrt(mass / draws) + 3 / draws


def test_constrained_text_is_a_word_at_every_budget() -> None:
    """Every answer is complete within its budget, and every word that fits it can come."""
    sampling = [SamplingParams(temperature=3.0, seed=seed) for seed in range(400)]
    for budget in range(1, 8):
        fitting = {word for word in LANGUAGE if len(word) <= budget}
        have = set(map(tuple, texts(sampling, budget, words=LANGUAGE)))
        assert have == fitting, budget


def test_budget_redraws_keep_the_law_of_what_fits() -> None:
    """With one token left to choose, a redraw is an exact draw from the words that still fit."""
    words = [(0,), (1,), (2, 3), (3, 3)]
    draws = 1_500
    sampling = [SamplingParams(seed=seed) for seed in range(draws)]
    have = Counter(token for (token,) in texts(sampling, 1, words=words))
    first = torch.softmax(text_logits(PROMPT, VOCAB).double()[:2], 0).tolist()
    for token, mass in enumerate(first):
        assert abs(have[token] / draws - mass) <= 4 * sqrt(mass * (1 - mass) / draws)


def test_a_complete_text_ends_when_nothing_that_is_drawn_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The empty text is legal, and every token opens a word that is longer than the budget."""
    monkeypatch.setattr(steering, "MAX_REDRAWS", 2)
    words = [(), *((token, token) for token in range(END))]
    sampling = [SamplingParams(temperature=2.0, seed=seed) for seed in range(40)]
    assert texts(sampling, 1, words=words) == [[]] * 40


def test_finish_reasons() -> None:
    def finish(words: Sequence[Sequence[int]], budget: int) -> str | None:
        each = request("r", PROMPT, budget, constraint=COMPILED, stop_token_ids=[END])
        return run(engine(words), [each])["r", 0].finish

    assert finish([(0, 1)], 5) == "stop"  # the grammar allows no more
    assert finish([(0, 1)], 2) == "stop"  # complete just when the budget is spent
    assert run(engine(), [request("r", PROMPT, 3)])["r", 0].finish == "length"


def test_stop_token_ends_the_text_and_is_not_part_of_it() -> None:
    greedy = SamplingParams(temperature=0)
    text = run(engine(), [request("r", PROMPT, 6, sampling=greedy)])["r", 0].tokens
    stop = text[3]
    each = request("r", PROMPT, 6, sampling=greedy, stop_token_ids=[stop])
    answer = run(engine(), [each])["r", 0]
    assert answer.tokens == text[: text.index(stop)]
    assert (answer.finish, answer.deltas[-1].stop_token) == ("stop", stop)


def test_weight_of_a_constrained_draw_is_its_legal_mass() -> None:
    """log_weight == sum of log Z over the steps (constrained cards, section 0)."""
    words = [(0, 1), (2, 1)]
    fields = {"constraint": COMPILED, "stop_token_ids": [END], "decoding": DecodingSpec(trace=True)}
    answer = run(engine(words), [request("r", PROMPT, 4, **fields)])["r", 0]
    rows = [text_logits([*PROMPT, *answer.tokens[:i]], VOCAB).double() for i in (0, 1)]
    masses = [torch.softmax(rows[0], 0)[[0, 2]].sum(), torch.softmax(rows[1], 0)[1]]
    trace = answer.deltas[-1].trace
    assert trace is not None
    assert trace["log_weight"] == pytest.approx(sum(float(m.log()) for m in masses), abs=1e-5)
    assert trace["steps"] == [1, 2]


def test_prompt_logprobs_are_the_models_own() -> None:
    prompt = [1, 2, 3, 4, 5, 0, 1, 2, 3]
    each = request("r", prompt, 0, prompt_logprobs=2, sampling=SamplingParams(temperature=0.3))
    answer = run(engine(max_step_tokens=4), [each])["r", 0]
    have = answer.deltas[0].prompt_logprobs
    assert answer.finish == "length"
    assert have is not None
    assert have[0] is None
    assert len(have) == len(prompt)
    for i, entry in enumerate(have[1:], 1):
        assert entry is not None
        row = torch.log_softmax(text_logits(prompt[:i], VOCAB), 0)
        assert entry.token_id == prompt[i]
        assert entry.logprob == pytest.approx(row[prompt[i]].item(), abs=1e-5)
        assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()


def test_broken_constraint_fails_its_own_request_only() -> None:
    """A mask that allows what the constraint then refuses, among requests that are fine."""

    host = AutoregressiveDecoder(VOCAB)
    running = table_engine({host.name: host}, load_constraint=lambda c: Broken(LANGUAGE, END))
    running.add(request("fine", PROMPT, 4))
    running.add(request("broken", PROMPT, 4, n=3, constraint=COMPILED))
    reports = [report for _ in range(8) for report in running.step()]
    failed = [report for report in reports if isinstance(report, Failed)]
    assert [(report.request_id, report.error) for report in failed] == [("broken", "Internal")]
    deltas = [report for report in reports if isinstance(report, Delta)]
    assert {delta.request_id for delta in deltas} == {"fine"}
    assert deltas[-1].finish_reason == "length"
    running.check_integrity()
