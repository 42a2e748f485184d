"""Predicted answers: followed through every edit, exact, and cheap where they are wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.drafter import DraftRequest, VerificationResult
from plait.decoders.contract.text import Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters.prediction import (
    MIN_AGREED,
    PredictionDrafter,
    PredictionIndex,
    PredictionOptions,
    PredictionState,
)
from plait.decoders.speculative.speculator import Speculator
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request, run
from tests.fixtures.random_requests import random_requests

VOCAB = 40
MAX_N = 4
FRESH = 10_000  # tokens from here on stand in no prediction
OPTIONS = PredictionOptions.model_validate({})
ALWAYS = {"name": "prediction", "always": True}
# Seconds by rows as a small model on few cores takes them: the first rows cost least.
COSTS = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.0, 16: 3.0, 32: 5.5, 64: 11.0}


def start(
    drafter: PredictionDrafter, prediction: Sequence[int], prompt: Sequence[int] = (1,)
) -> PredictionState:
    extras = PromptExtras(list(prediction))
    request = DecodeRequest(Text(prompt), SamplingParams(), 9, frozenset(), None, extras=extras)
    state = drafter.start(request)
    assert state is not None
    return state


def draft(
    drafter: PredictionDrafter, state: PredictionState, text: Sequence[int], split: int = 0
) -> list[int]:
    """Return the draft behind a text, whose last `split` tokens are drafts themselves."""
    known = len(text) - split
    (made,) = drafter.propose([DraftRequest(state, text[:known], text[known:], 8, None)])
    assert len(made.token_ids) == len(made.acceptance_probs)
    return list(made.token_ids)


def commit(
    drafter: PredictionDrafter, state: PredictionState, text: list[int], emitted: Sequence[int]
) -> None:
    text.extend(emitted)
    result = VerificationResult((), (), (0,), (), emitted, cast(Any, None), None)
    drafter.observe(state, text, result)


def naive_find(prediction: Sequence[int], tail: Sequence[int], home: int) -> tuple[int, int] | None:
    for size in range(min(MAX_N, len(tail)), 0, -1):
        known = range(size, len(prediction))
        ends = [e for e in known if list(prediction[e - size : e]) == list(tail[-size:])]
        if ends:
            return next((end for end in ends if end > home), ends[-1]), size
    return None


def naive_draft(
    prediction: Sequence[int], prompt: Sequence[int], answer: Sequence[int], split: int
) -> list[int]:
    """The words of the module, carried out anew for the whole answer."""
    at, run, home, best = 0, 1, 0, 1
    for i, token in enumerate(answer):
        if run >= 0 and at < len(prediction) and prediction[at] == token:
            at, run = at + 1, run + 1
        elif found := naive_find(prediction, [*prompt, *answer[: i + 1]], home):
            at, run = found
        else:
            at, run = (at + 1, 0) if run > 0 else (at, -1)
        home = at if run >= MIN_AGREED else home
        best = max(best, run) if i < len(answer) - split else best
    hoped = min(max(run, 0), split)
    agreed = max(best, run - hoped)
    max_tokens = min(8, 2 * (agreed + 1) - hoped)
    has_begun = run == at + 1  # as long as everything has agreed
    is_said = run >= 0 and (has_begun or agreed >= MIN_AGREED)
    return list(prediction[at : at + max(max_tokens, 0)]) if is_said else []


def missed(prediction: Sequence[int], answer: Sequence[int]) -> list[int]:
    """Return which tokens of the answer no draft had said."""
    drafter = PredictionDrafter(OPTIONS)
    state, text, found = start(drafter, prediction), [1], []
    for i, token in enumerate(answer):
        if draft(drafter, state, text)[:1] != [token]:
            found.append(i)
        commit(drafter, state, text, [token])
    return found


TOKENS = st.lists(st.integers(0, 3), max_size=24)


@given(prediction=TOKENS, tail=st.lists(st.integers(0, 3), max_size=6), home=st.integers(0, 30))
def test_runs_are_found_as_by_reading(prediction: list[int], tail: list[int], home: int) -> None:
    have = PredictionIndex(prediction, MAX_N).find(tail, home)
    assert have == naive_find(prediction, tail, home)


@given(
    prediction=TOKENS.filter(bool),
    prompt=TOKENS,
    answer=TOKENS,
    steps=st.lists(st.tuples(st.integers(1, 5), st.booleans())),
)
def test_drafts_are_those_of_the_words(
    prediction: list[int], prompt: list[int], answer: list[int], steps: list[tuple[int, bool]]
) -> None:
    """However the answer is cut into steps, in whichever of them the drafter is asked, and whatever
    part of the answer is drafted only."""
    drafter = PredictionDrafter(OPTIONS)
    state, text, is_asked = start(drafter, prediction, prompt), list(prompt), True
    while True:
        known = len(text) - len(prompt)
        for split in range(len(answer) - known + 1) if is_asked else ():
            said = [*prompt, *answer[: known + split]]
            want = naive_draft(prediction, prompt, answer[: known + split], split)
            assert draft(drafter, state, said, split) == want
        if known == len(answer):
            return
        size, is_asked = steps.pop() if steps else (1, True)
        commit(drafter, state, text, answer[known : known + size])


@pytest.mark.parametrize("seed", range(20))
def test_every_edit_costs_a_token_beside_its_own(seed: int) -> None:
    rng = random.Random(seed)
    prediction = list(range(400))
    answer, own, at = [], 0, 0
    for _ in range(8):
        kept, cut, new = rng.randint(8, 30), rng.choice((0, 1, 3, 12)), rng.choice((0, 1, 2, 7))
        answer += [*prediction[at : at + kept], *(FRESH + own + i for i in range(new))]
        at, own = at + kept + cut, own + new
    answer += prediction[at : at + 40]
    assert len(missed(prediction, answer)) <= own + 8


def test_repeated_lines_do_not_lead_astray() -> None:
    """A file whose lines are much alike: a few of them changed, gone and new."""
    line = [7, 8, 3, 5, 3, 9]  # between the two 3: a name that differs from line to line
    file = [[*line[:3], 100 + i % 25, *line[4:]] for i in range(60)]
    prediction = [token for each in file for token in each]
    file[10] = [7, 8, 3, FRESH, 3, 9]
    file[20:22] = []
    file[30:30] = [[7, 8, 4, FRESH + 1, 9], [7, FRESH + 2, 9]]
    file[45] = [7, 8, 3, 100, 4, 4, 9]
    answer = [token for each in file for token in each]
    assert len(missed(prediction, answer)) <= 16


def test_a_single_word_is_no_sign_that_the_prediction_is_right() -> None:
    drafter = PredictionDrafter(OPTIONS)
    state, text = start(drafter, [9, 5, 6, 7, 8, 4]), [1]
    assert draft(drafter, state, text) == [9, 5, 6, 7]  # nothing speaks against its beginning yet
    for token in (FRESH, 5, 6):
        commit(drafter, state, text, [token])
        assert not draft(drafter, state, text)
    commit(drafter, state, text, [7])
    assert draft(drafter, state, text) == [8, 4]


def test_sequences_of_a_request_share_the_index_of_a_prediction() -> None:
    drafter = PredictionDrafter(OPTIONS)
    one, other = start(drafter, [1, 2, 3]), start(drafter, [1, 2, 3])
    assert one.index is other.index
    drafter.finish(one, ())
    drafter.finish(other, ())
    assert not drafter._known


def with_predictions(
    requests: Sequence[GenerateRequest], predictions: Sequence[Sequence[int]], drafter: Any
) -> list[GenerateRequest]:
    return [
        replace(each, extras=PromptExtras(list(prediction)))
        for each, prediction in zip(drafted_by(requests, drafter), predictions, strict=True)
    ]


PATHOLOGIES: dict[str, list[int]] = {
    "nothing": [],
    "one token": [3],
    "always the same": [5] * 500,
    "ends only": [2] * 50,
    "longer than the context": list(range(3, VOCAB)) * 200,
    "unknown tokens": [VOCAB, 2**31 - 1, 0, VOCAB + 5] * 20,
}


@pytest.mark.parametrize("name", PATHOLOGIES)
@pytest.mark.parametrize("drafter", [ALWAYS, ["n-gram", {"name": "prediction", "max_n": 1}]])
def test_a_wrong_prediction_changes_nothing(name: str, drafter: Any) -> None:
    requests = random_requests(12, VOCAB, seed=11, max_tokens=40)
    want = texts(speculating(DrafterContext(VOCAB)), drafted_by(requests, "off"))
    predictions = [PATHOLOGIES[name]] * len(requests)
    context = DrafterContext(VOCAB, costs=CostCurve(COSTS))
    assert texts(speculating(context), with_predictions(requests, predictions, drafter)) == want


def test_a_right_prediction_saves_most_passes_and_the_counts_add_up() -> None:
    requests = [
        request(f"r{i}", [i + 3], 80, n=1 + i % 2, sampling=SamplingParams(seed=i))
        for i in range(4)
    ]
    want = texts(speculating(DrafterContext(VOCAB)), drafted_by(requests, "off"))
    predictions = [want[each.request_id, 0] for each in requests]
    context = DrafterContext(VOCAB, costs=CostCurve(COSTS))
    have = run(speculating(context), with_predictions(requests, predictions, "prediction"))
    assert {name: answer.tokens for name, answer in have.items()} == want
    right = [have[each.request_id, 0] for each in requests]
    traces = [answer.deltas[-1].trace or {} for answer in right]
    assert 4 * sum(t["forwards"] for t in traces) <= sum(len(a.tokens) for a in right)
    for answer in have.values():
        trace = answer.deltas[-1].trace or {}
        told = [delta.predicted for delta in answer.deltas if delta.predicted is not None]
        num_accepted = sum(len(each.accepted) for each in told)
        num_rejected = sum(rows for each in told for _, rows in each.rejected)
        assert num_accepted == trace["accepted"].get("prediction", 0) <= len(answer.tokens)
        assert num_accepted + num_rejected == trace["drafted"].get("prediction", 0)


@pytest.mark.parametrize("rest", [[30, 31, 32, 33], []])
def test_nobody_drafts_behind_a_prediction_that_is_followed(rest: list[int]) -> None:
    """What the text said last time is no reason to go on where the prediction waits for a sign, or
    ends; once the answer has left it, others may speak."""
    prompt = [*range(1, 21), *range(1, 21)]
    methods = resolve_decoding({"drafter": ["prediction", "suffix"]}).methods
    extras = PromptExtras([1, 2, 3, 4, *rest])
    asked = DecodeRequest(
        Text(prompt), SamplingParams(), 99, frozenset(), None, methods, extras=extras
    )
    speculator = Speculator(DrafterContext(VOCAB), CostCurve({1: 1.0, 64: 1.0}))
    member = speculator.start(asked)
    assert member is not None
    (tree,) = speculator.propose([member], [32], DraftBudget(64, 1))
    assert tree.token_ids[:4] == [1, 2, 3, 4]
    assert set(tree.sources) == {"prediction"}

    emitted, nothing = [1, 2, 3, 4, 5], cast(Any, None)
    drawn = [*emitted, *[0] * (len(tree) - 4)]
    result = VerificationResult(
        tree.token_ids, tree.parents, range(5), drawn, emitted, nothing, None
    )
    member.text.extend(result.emitted)
    speculator.record(member, result)
    (tree,) = speculator.propose([member], [32], DraftBudget(64, 1))
    follows, source = ([31, 32, 33], "prediction") if rest else ([6, 7, 8], "suffix")
    assert tree.token_ids[:3] == follows
    assert set(tree.sources) == {source}


def seconds(step_rows: Sequence[int]) -> float:
    by_rows = CostCurve(COSTS).seconds(max(step_rows))
    return sum(float(by_rows[rows]) for rows in step_rows)


def test_wrong_predictions_cost_little_and_right_ones_pay_at_once_again() -> None:
    """By the cost curve, one client after the other, of whom all but the last are wrong."""
    rng = random.Random(1)
    sampling = SamplingParams(seed=4)
    engine = speculating(DrafterContext(VOCAB, costs=CostCurve(COSTS)))
    for i in range(4):
        asked = [request(f"r{i}", [i + 3], 200, sampling=sampling)]
        want = texts(engine, drafted_by(asked, "off"))
        plain = seconds(engine.stats().step_tokens)
        wrong = [rng.randrange(VOCAB) for _ in range(200)]
        prediction = want[f"r{i}", 0] if i == 3 else wrong
        have = texts(engine, with_predictions(asked, [prediction], "prediction"))
        assert have == want
        ratio = seconds(engine.stats().step_tokens) / plain
        assert ratio < (0.4 if i == 3 else 1.03), i
