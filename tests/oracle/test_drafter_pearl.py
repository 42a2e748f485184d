"""PEARL's schedule, against traces written by hand."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from typing import Any

import pytest

from plait.decoders.speculative.context import DrafterContext
from tests.fixtures.draft_models import WrongAt, table_draft_model
from tests.fixtures.drafting import drafted_by, speculating
from tests.fixtures.engines import request, run

VOCAB = 40
PROMPT = [1, 2, 3]


def emitted(drafter: dict[str, Any], wrong: Collection[int], tokens: int) -> list[int]:
    """Return how many tokens each pass emits; drafts are wrong at some places of the answer."""
    model = WrongAt(VOCAB, {len(PROMPT) + place for place in wrong})
    engine = speculating(DrafterContext(VOCAB, draft_model=table_draft_model(model)))
    fields = {"name": "pearl", "always": True, **drafter}
    answer = run(engine, drafted_by([request("r", PROMPT, tokens)], fields))["r", 0]
    trace = answer.deltas[-1].trace
    assert trace is not None
    return [len(list(step)) for _, step in groupby(trace["steps"])]


def test_one_token_first_and_gamma_more_while_all_is_right() -> None:
    # drafts of 1, 3, 5 and, being the most, 5; each pass adds the token drawn behind them
    assert emitted({"gamma": 2, "max_draft": 5}, (), 24) == [2, 4, 6, 6, 6]


def test_one_token_again_after_a_wrong_draft() -> None:
    # pass 1 drafts place 0; pass 2 places 2-4, of which 3 is wrong: 2 and the right 3;
    # pass 3 drafts place 4 alone, pass 4 places 6-8, pass 5 places 10-14
    assert emitted({"gamma": 2}, {3}, 16) == [2, 2, 2, 4, 6]


def test_overlap_verifies_what_was_drafted_during_the_last_pass() -> None:
    # pass 1 is plain and shows that d1 of d1-d3 is right; d2 d3 are fed while e1-e3 are drafted,
    # and the row behind them judges e1; and so on
    assert emitted({"gamma": 3, "overlap": True}, (), 13) == [1, 3, 3, 3, 3]


def test_overlap_takes_plain_passes_until_a_first_draft_is_right() -> None:
    # gamma 3. Pass 1 draws place 0, and drafts 0-2. Pass 2 feeds 1, 2 and draws 3, for which
    # 3-5 were drafted, 3 being wrong: pre-verify. Pass 3 draws place 4, and drafts 4-6 meanwhile.
    # Pass 4 feeds 5, 6 and draws 7; pass 5 feeds 8, 9 and draws 10.
    assert emitted({"gamma": 3, "overlap": True}, {3}, 11) == [1, 3, 1, 3, 3]


def test_overlap_goes_on_plain_while_first_drafts_are_wrong() -> None:
    assert emitted({"gamma": 2, "overlap": True}, range(20), 6) == [1] * 6


@pytest.mark.parametrize("overlap", [False, True])
def test_gamma_follows_the_measured_speeds(overlap: bool) -> None:
    """A pass is said to take a second, so that all of max_draft fits into one."""
    have = emitted({"gamma": "auto", "overlap": overlap, "max_draft": 6}, (), 30)
    assert max(have) == (7 if not overlap else 6)
