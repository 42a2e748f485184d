"""a-star through the engine: plain sampling with one child, and the same text whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.engines import Answer, note, request, run
from tests.fixtures.scorers import ScorerService, scorer_service, scoring_engine

END = 5
DISTURBANCES: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1},
    "chunks": {"max_step_tokens": 8},
    "few blocks": {"num_blocks": 8},
    "no prefix cache": {"prefix_caching": False},
}
SCORER = {"name": "keywords", "keywords": ["ab", "dd", "ca", "bc", "ae"], "whole_words": False}


def a_star(name: str, seed: int, max_tokens: int, **options: Any) -> GenerateRequest:
    rng = random.Random(seed)
    scorer = options.pop("scorer", SCORER)
    decoding: dict[str, Any] = {
        "search": {"name": "a-star", "delimiters": ["a", "cd"], "max_step_tokens": 6, **options},
        "scorer": scorer,
    }
    return request(
        name,
        [rng.randrange(END) for _ in range(30)],
        max_tokens,
        stop_token_ids=[END],
        sampling=SamplingParams(temperature=0.8, seed=seed, logprobs=1),
        decoding=resolve_decoding(decoding),
    )


def requests() -> list[GenerateRequest]:
    rng = random.Random(4)
    return [
        a_star(
            f"r{i}",
            i,
            rng.randint(1, 40),
            num_continuations=rng.randint(1, 5),
            max_expansions=rng.randint(1, 30),
            cost=rng.choice(["increase", "decrease"]),
        )
        for i in range(8)
    ]


def told(have: dict[tuple[str, int], Answer]) -> dict[tuple[str, int], Any]:
    return {
        name: (each.tokens, each.finish, each.deltas[-1].search, each.deltas[-1].trace)
        for name, each in have.items()
    }


@pytest.mark.parametrize("max_expansions", [3, 100])
def test_one_continuation_is_plain_sampling(max_expansions: int) -> None:
    """Token for token and with the same logprobs, also when the budget is spent."""
    searched = [
        a_star(f"r{i}", i, 25, num_continuations=1, max_expansions=max_expansions) for i in range(8)
    ]
    plain = [msgspec.structs.replace(each, decoding=resolve_decoding({})) for each in searched]
    have, want = run(scoring_engine(), searched), run(scoring_engine(), plain)
    for name, answer in want.items():
        assert (have[name].tokens, have[name].finish) == (answer.tokens, answer.finish)
        entries = [entry for delta in have[name].deltas for entry in delta.logprobs or ()]
        assert entries == [entry for delta in answer.deltas for entry in delta.logprobs or ()]
        budget = have[name].deltas[-1].trace
        assert budget in (None, {"budget": "expansions"})
        assert max_expansions == 3 or budget is None


@pytest.mark.parametrize("settings", DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_runs_replay(settings: dict[str, Any]) -> None:
    """Whatever the batch, the chunks, preemption and the state of the prefix cache."""
    want = told(run(scoring_engine(), requests()))
    running = scoring_engine(**settings)
    assert told(run(running, requests())) == want
    assert told(run(running, requests())) == want
    assert running.stats().kv_blocks_used == 0
    if "num_blocks" in settings:
        assert running.stats().counters.num_preemptions > 0


def test_open_states_hold_no_blocks() -> None:
    """A scorer that likes short texts best keeps many of them open."""
    running = scoring_engine()
    brief = {"name": "length", "unit": "characters", "most": 1}
    each = a_star("r", 1, 60, num_continuations=4, max_expansions=30, scorer=brief)
    running.add(msgspec.structs.replace(each, stop_token_ids=[]))
    most = 0
    while running.has_work:
        running.step()
        for group in running._groups.values():
            parked = [each for each in group.members.values() if each.is_parked]
            assert all(not each.block_table.block_ids for each in parked)
            most = max(most, len(parked))
    assert most > 10


@pytest.fixture
def service() -> Iterator[ScorerService]:
    with scorer_service(lambda prompt, text, is_complete: text.count("a") % 3 / 3) as running:
        yield running


def test_the_scorer_sees_the_states(service: ScorerService) -> None:
    """The prompt first, then the children of each state together; usage counts all draws."""
    asked = a_star("r", 2, 20, num_continuations=3, max_expansions=5)
    scorer = resolve_decoding({"search": "a-star", "scorer": {"name": "http", "endpoint": "prm"}})
    decoding = msgspec.structs.replace(asked.decoding, scorers=scorer.scorers, trace=True)
    each = msgspec.structs.replace(asked, decoding=decoding)
    answer = run(scoring_engine(service), [each])["r", 0]
    texts = [text for call in service.calls for text in call]
    assert texts[0]["text"] == ""
    trace, result = answer.deltas[-1].trace, answer.deltas[-1].search
    assert trace is not None
    assert result is not None
    assert trace["scores"] == len(texts)
    assert trace["expansions"] <= 5
    assert result.num_tokens >= len(answer.tokens)
    assert {t["prompt"] for t in texts} == {"".join("abcdef"[i] for i in each.prompt_token_ids)}
    for i, each_text in enumerate(texts):
        seen = each_text["text"][: each_text["num_scored"]]
        assert not seen or any(t["text"].startswith(seen) for t in texts[:i])
    assert any(t["num_scored"] > 0 for t in texts)
    ends = [t for t in texts[1:] if not t["is_complete"]]
    assert all("a" in t["text"] or "cd" in t["text"] or len(t["text"]) >= 6 for t in ends)


@pytest.mark.parametrize(
    ("budget", "name"), [({"max_total_tokens": 25}, "tokens"), ({"max_ms": 1}, "ms")]
)
def test_a_hard_budget_returns_what_there_is(budget: dict[str, int], name: str) -> None:
    each = a_star("r", 3, 60, max_expansions=60, **budget)
    each = msgspec.structs.replace(each, stop_token_ids=[])
    running = scoring_engine()
    running.add(each)
    answers = {("r", 0): Answer()}
    while running.has_work:
        note(answers, running.step())
    answer = answers["r", 0]
    assert answer.deltas[-1].trace == {"budget": name}
    assert answer.finish == "length"
    assert len(answer.tokens) < 60
    running.check_integrity()
