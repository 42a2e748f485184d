"""A bitmask that allows more than is legal: refused tokens are drawn again, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, sqrt
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoding import AutoregressiveMethods, DecodingSpec, MethodSpec
from plait.decoders.contract.registry import MethodError
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.server.engine.engine import Engine
from plait.server.wire.messages import CompiledConstraint, GenerateRequest
from tests.fixtures.adversaries import adversaries  # noqa: F401, a fixture
from tests.fixtures.drafting import drafted_by, speculating
from tests.fixtures.engines import Answer, request, run, table_engine
from tests.fixtures.law_model import joint
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, Checked, WordConstraint

VOCAB = 6
PROMPT = [1, 2, 3]
COMPILED = CompiledConstraint("words", b"", 0)


class Impasse(Checked):
    """What follows token 4 is refused, all of it."""

    def accept_token(self, token_id: int) -> bool:
        return self.text[-1:] != (4,) and super().accept_token(token_id)


def engine(constraint: Constraint) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    return table_engine({host.name: host}, load_constraint=lambda compiled: constraint.fork())


def requests(count: int, **fields: Any) -> list[GenerateRequest]:
    sampling = fields.pop("sampling", {})
    return [
        request(
            f"r{seed}",
            PROMPT,
            fields.get("max_tokens", 9),
            sampling=SamplingParams(seed=seed, **sampling),
            constraint=COMPILED,
            stop_token_ids=[END],
            decoding=DecodingSpec(trace=True),
        )
        for seed in range(count)
    ]


def texts(answers: dict[tuple[str, int], Answer]) -> list[tuple[tuple[int, ...], str | None]]:
    return [(tuple(answer.tokens), answer.finish) for _, answer in sorted(answers.items())]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.0}, {"temperature": 2.0, "presence_penalty": 0.5}]
)
@pytest.mark.parametrize("shown", [(), range(END + 1)], ids=["no mask", "mask"])
def test_what_is_checked_is_what_is_masked(sampling: dict[str, Any], shown: Sequence[int]) -> None:
    """The next token of the same noise is the draw under the exact mask: token for token."""
    want = texts(run(engine(WordConstraint(LANGUAGE, END)), requests(60, sampling=sampling)))
    have = texts(run(engine(Checked(LANGUAGE, END, shown)), requests(60, sampling=sampling)))
    assert have == want
    assert {text for text, _ in have} <= set(LANGUAGE)


def test_refused_draws_follow_the_renormalised_law() -> None:
    draws, words = 1000, [(0,), (2,), (3,)]
    answers = run(engine(Checked(words, END, (0, 1, 2))), requests(draws))
    have = Counter(answer.tokens[0] for answer in answers.values())
    law = torch.softmax(text_logits(PROMPT, VOCAB).double(), 0)
    for token in (0, 2):  # 1 is shown and refused, 3 is legal and not shown
        mass = float(law[token] / law[[0, 2]].sum())
        assert abs(have[token] / draws - mass) <= 4 * sqrt(mass * (1 - mass) / draws)
    assert set(have) == {0, 2}
    traces = [answer.deltas[-1].trace or {} for answer in answers.values()]
    assert {trace["refused"] for trace in traces} == {0, 1}
    mass = float(law[[0, 1, 2]].sum())
    assert traces[0]["legal_mass"] == pytest.approx(mass, abs=1e-6)


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize(
    "constraint",
    [Checked(LANGUAGE, END), Impasse(LANGUAGE, END)],
    ids=lambda each: type(each).__name__,
)
def test_drafts_change_nothing(constraint: Constraint) -> None:
    """Refused tokens in drafts, and drafts behind refused draws."""
    want, num_accepted = texts(run(engine(constraint), requests(80))), 0
    for kind in ("tree", "fan", "random"):
        drafter = {"name": "adversary", "kind": kind, "max_draft": 6, "always": True}
        running = speculating(DrafterContext(VOCAB), load_constraint=lambda c: constraint.fork())
        assert texts(run(running, drafted_by(requests(80), drafter))) == want
        num_accepted += sum(running.stats().counters.speculation.accepted_tokens.values())
    assert num_accepted > 0


def test_a_dead_end_ends_the_text_and_says_so() -> None:
    """Nobody else suffers; the tokens before it were legal; its weight is nothing."""
    answers = run(engine(Impasse(LANGUAGE, END)), requests(100))
    ends = Counter(answer.finish for answer in answers.values())
    assert set(ends) == {"stop", "dead_end"}
    for answer in answers.values():
        trace = answer.deltas[-1].trace or {}
        if answer.finish == "dead_end":
            assert answer.tokens[-1] == 4
            assert trace["log_weight"] is None
            assert trace["refused"] >= VOCAB
        else:
            assert tuple(answer.tokens) in LANGUAGE
            assert exp(trace["log_weight"]) > 0


def test_misfits_and_refusals_of_one_draw() -> None:
    """Refused tokens are no redraws that the budget has caused: the text still ends complete."""
    words = [(0,), *((1, token) for token in range(END)), (2, 2, 2)]
    for budget in (1, 2):
        asked = requests(300, max_tokens=budget, sampling={"temperature": 3.0})
        have = texts(run(engine(Checked(words, END)), asked))
        assert {text for text, _ in have} == {word for word in words if len(word) <= budget}
        assert {finish for _, finish in have} == {"stop"}


AWRS = [
    {},
    {"estimator": "two-loop"},
    {"estimator": "des-raj", "extra_checks": 2},
    {"estimator": "geometric"},
    {"estimator": "genlm"},
]


def weighing(each: GenerateRequest, options: dict[str, Any], **fields: Any) -> GenerateRequest:
    methods = AutoregressiveMethods(MethodSpec("awrs", options))
    return replace(each, decoding=DecodingSpec(methods, trace=True, **fields))


def masses(words: Sequence[tuple[int, ...]], heat: float) -> dict[tuple[int, ...], float]:
    def law(output: tuple[int, ...]) -> list[float]:
        found: list[float] = (
            (text_logits([*PROMPT, *output], VOCAB).double() / heat).softmax(0).tolist()
        )
        return found

    return joint(law, words)


@pytest.mark.parametrize("options", AWRS, ids=str)
@pytest.mark.parametrize("shown", [(), (0, 1, 2, 4, END)], ids=["check", "mask and check"])
def test_awrs_weighs_whole_texts_properly(options: dict[str, Any], shown: Sequence[int]) -> None:
    """E[exp(log_weight) 1[text = word]] == P(word), within 4 standard errors; budgets are checks.

    Words of 5 tokens and more don't fit; those with token 3 are not shown.
    """
    runs, heat = 1000, 2.0
    asked = requests(runs, max_tokens=4, sampling={"temperature": heat})
    constraint = Checked(LANGUAGE, END, shown)
    answers = run(engine(constraint), [weighing(each, options) for each in asked])
    want = {
        word: mass
        for word, mass in masses(LANGUAGE, heat).items()
        if len(word) <= 4 and (not shown or 3 not in word)
    }
    check_weights([(tuple(a.tokens), weight_of(a)) for a in answers.values()], want)
    traces = [answer.deltas[-1].trace or {} for answer in answers.values()]
    assert all(trace["checks"] > trace["refused"] for trace in traces)
    assert any(trace["refused"] for trace in traces)


def check_weights(
    found: Sequence[tuple[tuple[int, ...], float]], want: dict[tuple[int, ...], float]
) -> None:
    """Compare the mean weight of each common word, and of all words: 4 standard errors each."""
    common = [{word} for word, mass in want.items() if mass > 0.01 * sum(want.values())]
    assert len(common) > 1
    for words in [*common, set(want)]:
        values = [weight * (text in words) for text, weight in found]
        mean = sum(values) / len(values)
        error = sqrt(sum((value - mean) ** 2 for value in values)) / len(values)
        assert abs(mean - sum(want[word] for word in words)) <= 4 * error, words


def weight_of(answer: Answer) -> float:
    log_weight = (answer.deltas[-1].trace or {})["log_weight"]
    return 0.0 if log_weight is None else exp(log_weight)


def test_awrs_draws_what_the_ordinary_sampler_draws() -> None:
    for sampling in ({}, {"temperature": 0.0}, {"temperature": 2.0, "top_k": 3}):
        asked = requests(60, sampling=sampling)
        want = texts(run(engine(Checked(LANGUAGE, END)), asked))
        have = texts(run(engine(Checked(LANGUAGE, END)), [weighing(each, {}) for each in asked]))
        assert have == want


def test_awrs_of_an_exact_mask_is_its_mass() -> None:
    """Nothing is refused and all fits: the weight is the ordinary one."""
    asked = requests(30, max_tokens=20)
    want = run(engine(WordConstraint(LANGUAGE, END)), asked)
    have = run(engine(WordConstraint(LANGUAGE, END)), [weighing(each, {}) for each in asked])
    for key, answer in want.items():
        assert weight_of(have[key]) == pytest.approx(weight_of(answer), rel=1e-5)


def test_particles_of_awrs_are_properly_weighted() -> None:
    """smc over checks: E[exp(log_evidence) 1[choice = word]] == P(word)."""
    runs, heat = 300, 2.0
    search = MethodSpec("smc", {"num_particles": 4, "ess_threshold": 0.9})
    asked = [
        weighing(each, {}, search=search) for each in requests(runs, sampling={"temperature": heat})
    ]
    answers = run(engine(Checked(LANGUAGE, END)), asked)
    found = [
        (tuple(a.tokens), exp((a.deltas[-1].trace or {})["log_evidence"])) for a in answers.values()
    ]
    check_weights(found, masses(LANGUAGE, heat))


def test_exact_rejection_needs_exact_masses() -> None:
    for search in ("cars", "asap"):
        with pytest.raises(MethodError, match="can't be composed with awrs") as caught:
            resolve_decoding({"search": search, "sampler": "awrs"})
        assert caught.value.param == "decoding.sampler"
