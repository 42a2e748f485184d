"""Searches that ask scorers, through the engine: exact, and nobody waits for a scorer but them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.search import SearchRequest
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.search.lookahead.deal import DealOptions
from plait.decoders.search.lookahead.segments import make
from plait.server.engine.group.scoring import spell
from plait.server.wire.messages import Failed, GenerateRequest
from tests.fixtures.engines import Answer, drain, note, request, run
from tests.fixtures.scorers import Letters, ScorerService, scorer_service, scoring_engine
from tests.fixtures.search_driver import Found, SearchDriver
from tests.fixtures.table_model import text_logits

VOCAB = 6
END = 5
DISTURBANCES: dict[str, dict[str, Any]] = {
    "batch": {},
    "alone": {"max_num_seqs": 1},
    "chunks": {"max_step_tokens": 8},
    "few blocks": {"num_blocks": 8},
}
N_GRAM = {"name": "n-gram", "always": True, "min_n": 1}
KEYWORDS = {
    "name": "keywords",
    "keywords": ["ab", "dd", "ca", "bc"],
    "whole_words": False,
    "weight": 3.0,
}


def worth(tokens: tuple[int, ...], is_complete: bool) -> float:
    """The score of KEYWORDS: none of the words is in a prompt."""
    text = spell(Letters().token_bytes, tokens)
    return 3.0 * sum(word in text for word in ("ab", "dd", "ca", "bc")) / 4


def deal(name: str, seed: int, n: int, max_tokens: int, **options: Any) -> GenerateRequest:
    rng = random.Random(seed)
    scorer, drafter = options.pop("scorer", KEYWORDS), options.pop("drafter", "off")
    return request(
        name,
        [rng.randrange(END) for _ in range(20)],
        max_tokens,
        n=n,
        stop_token_ids=[END],
        sampling=SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=seed),
        decoding=resolve_decoding(
            {"search": {"name": "deal", **options}, "scorer": scorer, "drafter": drafter}
        ),
    )


def plain(name: str) -> GenerateRequest:
    return request(name, [1, 2, 3], 12, n=2, sampling=SamplingParams(seed=7))


def driven(each: GenerateRequest) -> list[Found]:
    """Return what the search finds without an engine."""
    assert each.decoding.search is not None

    def law(output: tuple[int, ...]) -> Sequence[float]:
        logits = text_logits([*each.prompt_token_ids, *output], VOCAB).double()
        found: list[float] = logits.log_softmax(0).tolist()
        return found

    search = make(DealOptions(**each.decoding.search.options))
    asked = SearchRequest(each.n, each.max_tokens, 0)
    return SearchDriver(search, law, frozenset({END}), asked, worth=worth).run()


def found_in(answers: dict[tuple[str, int], Answer], each: GenerateRequest) -> list[Found]:
    found = []
    for i in range(each.n):
        answer = answers[each.request_id, i]
        result = answer.deltas[-1].search
        assert result is not None
        found.append(Found(tuple(answer.tokens), answer.finish, result.score))  # type: ignore[arg-type]
    return found


def check(have: Sequence[Found], want: Sequence[Found]) -> None:
    assert [f.tokens for f in have] == [f.tokens for f in want]
    assert [f.score for f in have] == pytest.approx([f.score for f in want], abs=1e-4)


@pytest.fixture
def service() -> Iterator[ScorerService]:
    with scorer_service(lambda prompt, text, is_complete: text.count("a") / 4) as running:
        yield running


@pytest.mark.parametrize(
    "drafter", ["off", {"name": "n-gram", "always": True, "min_n": 1}], ids=str
)
@pytest.mark.parametrize("settings", DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_deal_is_exact_and_batch_mates_are_unaffected(
    settings: dict[str, Any], drafter: Any
) -> None:
    rng = random.Random(2)
    asked = [
        deal(
            f"r{i}",
            i,
            width := rng.randint(1, 3),
            rng.randint(1, 9),
            beams=width + rng.randint(0, 1),
            top_k=rng.randint(1, 4),
            lookahead=rng.randint(0, 4),
            reward_weight=rng.choice([0.0, 0.5, 2.0]),
            drafter=drafter,
        )
        for i in range(6)
    ]
    asked += [
        deal(f"s{i}", i, 2, 8, form="segment", beams=2, init_beams=3, lookahead=3) for i in range(3)
    ]
    alone = run(scoring_engine(), [plain("mate")])
    running = scoring_engine(**settings)
    have = run(running, [*asked, plain("mate")])
    for each in asked:
        check(found_in(have, each), driven(each))
    for i in range(2):
        assert have["mate", i].tokens == alone["mate", i].tokens
    assert running.stats().kv_blocks_used == 0


def test_nobody_else_waits_for_a_scorer(service: ScorerService) -> None:
    """While the service is silent, another request runs to its end; then the search goes on."""
    service.gate.clear()
    running = scoring_engine(service)
    slow = deal("slow", 1, 1, 6, scorer={"name": "http", "endpoint": "prm"}, lookahead=2)
    running.add(slow)
    answers = {("mate", i): Answer() for i in range(2)}
    while not service.calls:
        note(answers, running.step())
    running.add(plain("mate"))
    while any(not answer.deltas or answer.finish is None for answer in answers.values()):
        note(answers, running.step())
    assert len(service.calls) == 1
    service.gate.set()
    have = drain(running)
    assert have["slow", 0].finish in ("stop", "length")
    assert service.calls[0][0]["prompt"] == spell(Letters().token_bytes, slow.prompt_token_ids)


def test_requests_share_calls(service: ScorerService) -> None:
    """What four searches ask while a call runs is one call."""
    http = {"name": "http", "endpoint": "prm"}
    one = deal("r0", 3, 1, 6, scorer=http, top_k=3, beams=2, lookahead=1)
    run(scoring_engine(service), [one])
    alone = [len(call) for call in service.calls]
    service.calls.clear()
    service.gate.clear()
    running = scoring_engine(service)
    for i in range(4):
        running.add(msgspec.structs.replace(one, request_id=f"r{i}"))
    groups = running._groups
    while len(groups) < 4 or not service.calls or not all(g.pending for g in groups.values()):
        running.step()
    assert len(service.calls) == 1
    service.gate.set()
    have = drain(running)
    sizes = [len(call) for call in service.calls]
    assert sum(sizes) == 4 * sum(alone)
    assert 4 * alone[0] in (sizes[0], sum(sizes[:2]))
    assert len(sizes) <= 2 * len(alone)
    assert len({tuple(have[f"r{i}", 0].tokens) for i in range(4)}) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"answer": lambda scores: {"scores": scores[1:]}},
        {"answer": lambda scores: {"scores": [math.nan] * len(scores)}},
        {"answer": lambda scores: [1.0] * len(scores)},
    ],
    ids=["status", "too few", "nan", "shape"],
)
def test_a_scorer_that_fails_ends_its_requests_alone(
    service: ScorerService, fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(service, name, value)
    running = scoring_engine(service)
    running.add(deal("bad", 1, 1, 6, scorer={"name": "http", "endpoint": "prm"}))
    running.add(deal("good", 2, 1, 6))
    reports = []
    while running.has_work:
        reports += running.step()
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    assert (failed.request_id, failed.error) == ("bad", "Unavailable")
    running.check_integrity()


def test_a_poisoned_text_fails_its_own_request(service: ScorerService) -> None:
    """One call for both requests fails; each alone, one of them does not."""

    def score(prompt: str, text: str, is_complete: bool) -> float:
        return math.inf if prompt.startswith("a") else 0.5

    service.score = score
    http = {"name": "http", "endpoint": "prm"}
    good, bad = deal("good", 1, 1, 4, scorer=http), deal("bad", 1, 1, 4, scorer=http)
    good = msgspec.structs.replace(good, prompt_token_ids=[1, 2])
    bad = msgspec.structs.replace(bad, prompt_token_ids=[0, 2])
    running = scoring_engine(service)
    running.add(good)
    running.add(bad)
    reports = []
    while running.has_work:
        reports += running.step()
    failed = [report for report in reports if isinstance(report, Failed)]
    assert [each.request_id for each in failed] == ["bad"]


def test_a_service_that_the_operator_has_not_named_is_refused(service: ScorerService) -> None:
    running = scoring_engine(service)
    running.add(deal("r", 1, 1, 4, scorer={"name": "http", "endpoint": "other"}))
    while not (reports := running.step()):
        pass
    (failed,) = reports
    assert isinstance(failed, Failed)
    assert (failed.error, failed.param) == ("BadRequest", "decoding.scorer.endpoint")
    assert "the operator's are: prm" in failed.message


def test_a_deadline_or_a_client_that_leaves_ends_the_wait(service: ScorerService) -> None:
    service.gate.clear()
    running = scoring_engine(service)
    http = {"name": "http", "endpoint": "prm"}
    late = msgspec.structs.replace(
        deal("late", 1, 1, 30, scorer=http), deadline=time.monotonic() + 3600, stop_token_ids=[]
    )
    running.add(late)
    running.add(deal("gone", 2, 1, 6, scorer=http))
    while not service.calls:
        running.step()
    running.abort("gone")
    (group,) = running._groups.values()
    group.request = msgspec.structs.replace(late, deadline=0.0)
    answers = {("late", 0): Answer()}
    note(answers, running.step())
    assert answers["late", 0].finish == "deadline"
    assert not running.has_work
    service.gate.set()
    running.check_integrity()


def test_a_budget_of_time_ends_the_wait_and_is_told(
    service: ScorerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.gate.clear()
    running = scoring_engine(service)
    each = deal("r", 1, 1, 6, scorer={"name": "http", "endpoint": "prm"})
    each = msgspec.structs.replace(each, stop_token_ids=[])
    search = make(DealOptions())
    search.needs = SearchNeeds(5, logprobs=True, is_greedy=True, max_ms=10)
    monkeypatch.setattr("plait.server.engine.group.group.make_search", lambda _: search)
    running.add(each)
    answers = {("r", 0): Answer()}
    while running.has_work:
        note(answers, running.step())
    assert answers["r", 0].finish == "length"
    assert answers["r", 0].deltas[-1].trace == {"budget": "ms"}
    service.gate.set()


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_character_that_is_not_whole_is_left_out(is_complete: bool) -> None:
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:]]
    assert spell(pieces, [0, 1, 2, 0], is_complete=is_complete) == "aéa"
    want = "a\ufffd" if is_complete else "a"
    assert spell(pieces, [0, 1], is_complete=is_complete) == want
    assert spell(pieces, [0, 9, 0], is_complete=is_complete) == "aa"
