"""Lossy acceptance: what it lets stand, what it never may, and that the answer says so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.registry import MethodError
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.config import resolve_drafters
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.lossy.lud import LudDrafter, LudOptions
from plait.decoders.speculative.lossy.typical import TypicalAcceptance, TypicalOptions
from plait.decoders.speculative.speculator import Speculator
from plait.server.engine.engine import Engine
from plait.server.wire.messages import CompiledConstraint
from tests.fixtures.engines import Answer, request, run, table_engine
from tests.fixtures.word_constraint import WordConstraint

VOCAB, END = 6, 5
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]
N_GRAM = {"name": "n-gram", "min_n": 1, "max_n": 3, "always": True, "max_draft": 8}
LOOSE = {"name": "typical", "epsilon": 0.01, "delta": 0.01}
WORDS = [(0, 1, 2), (0, 1, 3), (2, 3, 4), (2, 3, 0, 1, 2)]
COMPILED = CompiledConstraint("words", b"", 0)


def engine(words: Sequence[Sequence[int]] = ()) -> Engine:
    costs = CostCurve({1: 1.0, 64: 1.5})
    speculator = Speculator(DrafterContext(VOCAB, num_embeddings=3), costs)
    host = AutoregressiveDecoder(VOCAB, speculator=speculator)
    return table_engine(
        {host.name: host}, load_constraint=lambda compiled: WordConstraint(words, END)
    )


def answers(drafter: Any, count: int = 30, temperature: float = 1.0, **fields: Any) -> list[Answer]:
    words = fields.pop("words", ())
    requests = [
        request(
            f"r{i}",
            PROMPT,
            20,
            sampling=SamplingParams(seed=i, temperature=temperature),
            decoding=resolve_decoding({"drafter": drafter, **fields.pop("decoding", {})}),
            **fields,
        )
        for i in range(count)
    ]
    have = run(engine(words), requests)
    return [have[f"r{i}", 0] for i in range(count)]


def tokens(found: Sequence[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in found]


def test_typical_takes_what_is_probable_enough() -> None:
    """p(x) > min(epsilon, delta exp(-H)), checked on a law whose entropy is known."""
    law = torch.tensor([0.5, 0.25, 0.25])  # exp(-H) == 0.3536
    rule = TypicalAcceptance(TypicalOptions(epsilon=1.0, delta=0.7))  # the bar is 0.2475
    assert rule.select(law, [1, 2]) == 1
    assert rule.select(law, [0, 1]) == 0
    assert TypicalAcceptance(TypicalOptions(epsilon=1.0, delta=0.71)).select(law, [1, 2]) is None
    assert TypicalAcceptance(TypicalOptions(epsilon=0.24, delta=0.71)).select(law, [1]) == 1


def test_typical_saves_passes_and_changes_texts() -> None:
    plain, exact, lossy = (answers(each) for each in ("off", N_GRAM, [N_GRAM, LOOSE]))
    assert tokens(exact) == tokens(plain)
    assert tokens(lossy) != tokens(plain)
    assert [len(text) for text in tokens(lossy)] == [20] * 30
    assert sum(len(a.deltas) for a in lossy) < sum(len(a.deltas) for a in exact)


def test_greedy_requests_are_verified_exactly() -> None:
    assert tokens(answers([N_GRAM, LOOSE], temperature=0)) == tokens(answers("off", temperature=0))


@pytest.mark.parametrize("drafter", [[N_GRAM, LOOSE], {"name": "lud", "beta": 0.0, "always": True}])
def test_lossy_answers_keep_to_their_constraint(drafter: Any) -> None:
    fields: dict[str, Any] = {
        "words": WORDS,
        "constraint": COMPILED,
        "stop_token_ids": [END],
    }
    for answer in answers(drafter, temperature=2.0, **fields):
        assert tuple(answer.tokens) in WORDS
        assert answer.finish == "stop"


def test_lud_emits_what_it_trusts() -> None:
    """With beta 0 all three guesses stand, unless one repeats; with beta near 1 none does."""
    plain = answers("off")
    none = answers({"name": "lud", "beta": 0.9999, "always": True})
    assert tokens(none) == tokens(plain)
    some = answers({"name": "lud", "beta": 0.0, "always": True})
    assert sum(len(answer.deltas) for answer in some) < 0.5 * sum(len(a.deltas) for a in plain)
    for answer in some:
        for delta in answer.deltas:
            unit = delta.token_ids
            assert all(one != other for one, other in pairwise(unit))


def test_lud_keeps_nothing_in_the_cache_that_is_no_text() -> None:
    """What follows a unit is drawn under its tokens, not under the inputs that guessed them."""
    rule = {"name": "lud", "beta": 0.0, "always": True}
    (answer,) = answers(rule, count=1, temperature=0)
    at = len(answer.deltas[0].token_ids)
    text = [*PROMPT, *answer.tokens[:at]]
    greedy = SamplingParams(temperature=0)
    want = run(engine(), [request("r", text, 1, sampling=greedy)])["r", 0].tokens
    assert answer.tokens[at : at + 1] == want


def test_lud_trusts_no_repetition() -> None:
    rule = LudDrafter(
        LudOptions.model_validate({"beta": 0.5}), DrafterContext(VOCAB, num_embeddings=3)
    )
    law = torch.tensor([0.9, 0.1, 0, 0, 0, 0])
    assert rule.accepts_unverified(law, 0, before=1)
    assert not rule.accepts_unverified(law, 0, before=0)
    assert not rule.accepts_unverified(law, 1, before=0)


def test_an_answer_says_that_it_is_lossy() -> None:
    (quiet,) = answers([N_GRAM, LOOSE], count=1)
    assert quiet.deltas[-1].trace == {"lossy": "typical"}
    (asked,) = answers([N_GRAM, LOOSE], count=1, decoding={"trace": True})
    assert asked.deltas[-1].trace is not None
    assert asked.deltas[-1].trace["lossy"] == "typical"
    (exact,) = answers(N_GRAM, count=1)
    assert exact.deltas[-1].trace is None


def test_an_acceptance_rule_alone_is_refused() -> None:
    with pytest.raises(MethodError, match="name a drafter beside it"):
        resolve_drafters({"drafter": "typical"})
    with pytest.raises(MethodError, match="both decide the acceptance rule"):
        resolve_drafters({"drafter": ["n-gram", "typical", "lud"]})
