"""A bitmask that allows more than is legal: refused tokens are drawn again, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, sqrt
from typing import Any

import pytest
import torch

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoding import DecodingSpec
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.server.engine.engine import Engine
from plait.server.wire.messages import CompiledConstraint, GenerateRequest
from tests.fixtures.adversaries import adversaries  # noqa: F401, a fixture
from tests.fixtures.drafting import drafted_by, speculating
from tests.fixtures.engines import Answer, request, run, table_engine
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
