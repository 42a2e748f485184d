"""Jacobi drafts: the text stays what it is, and iterating them reaches it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request, run
from tests.fixtures.random_requests import random_requests
from tests.fixtures.table_model import Forgetful, TableModel

VOCAB = 40
CONTEXT = DrafterContext(VOCAB)
PROMPT = [1, 2, 3]
PUBLISHED = {"name": "jacobi", "preset": "sjd"}
CHOICES: dict[str, Any] = {
    "published": PUBLISHED,
    "repeat": {"name": "jacobi", "fill": "repeat", "always": True},
    "behind n-gram": ["n-gram", {"name": "jacobi", "fill": "off"}],
    "as it pays": "jacobi",
}


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 12}, {"max_step_tokens": 16}], ids=str)
@pytest.mark.parametrize("drafter", CHOICES.values(), ids=CHOICES)
def test_drafts_change_no_text(drafter: Any, settings: dict[str, Any]) -> None:
    requests = random_requests(24, VOCAB, seed=3)
    want = texts(speculating(CONTEXT), drafted_by(requests, "off"))
    assert texts(speculating(CONTEXT, **settings), drafted_by(requests, drafter)) == want


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_law_without_memory_is_known_after_one_pass(temperature: float) -> None:
    """What the first pass draws is right already, so the second one emits all of it."""
    sampling = SamplingParams(temperature=temperature, seed=7)
    each = request("r", PROMPT, 14, sampling=sampling)
    for drafter, want in (("off", 14), (PUBLISHED, 2)):
        model = Forgetful(VOCAB)
        answer = run(speculating(CONTEXT, model=model), drafted_by([each], drafter))["r", 0]
        assert (len(answer.tokens), model.num_forwards) == (14, want)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_window_as_long_as_the_text_reaches_its_fixed_point(temperature: float) -> None:
    """Every pass makes a token final: never more passes than tokens, and the text is the plain."""
    for seed in range(8):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        each = request("r", PROMPT, 12, sampling=sampling)
        want = texts(speculating(CONTEXT), drafted_by([each], "off"))
        model = TableModel(VOCAB)
        assert texts(speculating(CONTEXT, model=model), drafted_by([each], PUBLISHED)) == want
        assert model.num_forwards <= 12


def test_a_refreshed_tail_needs_no_other_drafter() -> None:
    """Without guesses there are no rows, so nothing is ever drawn ahead."""
    each = request("r", PROMPT, 12)
    engine = speculating(CONTEXT)
    run(engine, drafted_by([each], {"name": "jacobi", "fill": "off", "always": True}))
    assert "jacobi" not in engine.stats().counters.speculation.draft_tokens


def test_guesses_depend_on_the_request_alone() -> None:
    """The same request is drafted alike in company: equal counts of fed and accepted tokens."""

    def trace(company: int) -> Any:
        requests = [request(f"r{i}", PROMPT, 12, n=2) for i in range(1 + company)]
        requests = [replace(r, sampling=SamplingParams(seed=i)) for i, r in enumerate(requests)]
        have = run(speculating(CONTEXT), drafted_by(requests, PUBLISHED))
        return have["r0", 1].deltas[-1].trace

    assert trace(0) == trace(5)
