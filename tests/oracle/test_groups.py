"""Groups of sequences that a search forks, cuts, parks and drops: every text is right."""

from __future__ import annotations

import time
from typing import Any

import pytest

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.engine import Engine
from plait.server.engine.group import group as groups
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed
from tests.fixtures.engines import Answer, drain, note, request, run, table_engine
from tests.fixtures.random_search import RandomSearch
from tests.fixtures.table_model import text_logits

VOCAB = 6
PROMPT = [1, 2, 3] * 9
GREEDY = SamplingParams(temperature=0.0)


def engine(*, num_blocks: int = 256, **settings: Any) -> Engine:
    decoder = AutoregressiveDecoder(VOCAB)
    return table_engine(
        {decoder.name: decoder}, num_blocks=num_blocks, settings=EngineSettings(**settings)
    )


@pytest.fixture
def on_search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let requests whose priority is 1 be run by a search."""

    def use(search: RandomSearch) -> RandomSearch:
        plain = groups.make_search
        monkeypatch.setattr(
            groups, "make_search", lambda asked: search if asked.priority else plain(asked)
        )
        return search

    return use


def check_greedy(tokens: list[int], forced: set[int]) -> None:
    """Every token that the search did not give is the one that greedy decoding takes."""
    for i, token in enumerate(tokens):
        if i not in forced:
            assert token == int(text_logits([*PROMPT, *tokens[:i]], VOCAB).argmax())


@pytest.mark.parametrize("is_synchronous", [False, True])
@pytest.mark.parametrize(
    ("num_blocks", "settings"),
    [(256, {}), (14, {}), (256, {"max_num_seqs": 3}), (14, {"prefix_caching": False})],
)
def test_members_go_on_as_their_texts_do(
    is_synchronous: bool, num_blocks: int, settings: dict[str, Any], on_search: Any
) -> None:
    """Forks share blocks, are preempted and computed again; the table model reads every entry."""
    search = on_search(
        RandomSearch(num_steps=30, width=12, vocab_size=VOCAB, is_synchronous=is_synchronous)
    )
    running = engine(num_blocks=num_blocks, **settings)
    asked = [
        request(f"r{i}", PROMPT, 40, n=2, priority=1, sampling=SamplingParams(0.0, seed=i))
        for i in range(3)
    ]
    have = run(running, [*asked, request("plain", PROMPT, 20, sampling=GREEDY)])
    check_greedy(have["plain", 0].tokens, set())
    assert len(have) == 7 and len(search.history) == 3
    for i in range(3):
        state = next(s for s in search.history if s.rng is not None and s is search.history[i])
        for choice, member in enumerate(sorted(state.lengths)[:2]):
            answer = have[f"r{i}", choice]
            assert len(answer.tokens) >= state.lengths[member]
            check_greedy(answer.tokens, state.forced[member])
            assert answer.finish == "length"
            found = answer.deltas[-1].search
            assert found is not None and found.num_sequences == state.num_members
            assert found.num_tokens > len(answer.tokens) and found.score == -member


def test_a_group_streams_what_its_members_share(on_search: Any) -> None:
    """Greedy members that nobody steers agree, so all is streamed as it comes, to each choice."""
    search = on_search(RandomSearch(num_steps=9, width=4, vocab_size=VOCAB))
    search.step = lambda state, outcomes: ()
    search.rank = lambda state, members: RandomSearch.rank(
        search, search.history[0], [*search.history[0].lengths]
    )
    have = run(engine(), [request("r", PROMPT, 12, n=3, priority=1, sampling=GREEDY)])
    assert [have["r", i].tokens for i in range(3)] == [have["r", 0].tokens] * 3
    check_greedy(have["r", 0].tokens, set())
    assert [len(delta.token_ids) for delta in have["r", 1].deltas][:8] == [1] * 8


@pytest.mark.parametrize("num_blocks", [256, 14])
def test_an_aborted_search_leaves_no_block_behind(num_blocks: int, on_search: Any) -> None:
    on_search(RandomSearch(num_steps=99, width=32, vocab_size=VOCAB))
    running = engine(num_blocks=num_blocks)
    for at in (1, 3, 8, 20):
        running.add(request("r", PROMPT, 90, n=2, priority=1, sampling=SamplingParams(seed=at)))
        for _ in range(at):
            running.step()
        running.abort("r", 0)
        running.step()
        assert running.has_work
        running.abort("r", 1)
        assert not running.has_work
        running.check_integrity()
        assert running.stats().kv_blocks_used == 0


def test_a_deadline_returns_what_there_is(on_search: Any) -> None:
    on_search(RandomSearch(num_steps=10**6, width=8, vocab_size=VOCAB))
    running = engine()
    running.add(request("r", PROMPT, 10_000 // 8, n=2, priority=1, deadline=time.monotonic() + 0.2))
    have = drain(running)
    assert [have["r", i].finish for i in range(2)] == ["deadline"] * 2
    assert running.stats().kv_blocks_used == 0


@pytest.mark.parametrize("budget", [{"max_total_tokens": 60}, {"max_ms": 1}])
def test_a_spent_budget_ends_the_search(budget: dict[str, Any], on_search: Any) -> None:
    on_search(RandomSearch(num_steps=10**6, width=8, vocab_size=VOCAB, **budget))
    have = run(engine(), [request("r", PROMPT, 400, n=2, priority=1)])
    for i in range(2):
        found = have["r", i].deltas[-1].search
        assert have["r", i].finish == "length" and found is not None
        assert found.num_tokens < 60 + 8 or "max_ms" in budget


def test_a_search_that_asks_for_what_can_not_be_fails_alone(on_search: Any) -> None:
    search = on_search(RandomSearch(num_steps=9, width=64, vocab_size=VOCAB, max_members=3))
    assert search.needs.max_members == 3
    running = engine()
    for each in (
        request("r", PROMPT, 30, priority=1),
        request("plain", PROMPT, 9, sampling=GREEDY),
    ):
        running.add(each)
    reports: list[Any] = []
    answers: dict[tuple[str, int], Answer] = {("plain", 0): Answer()}
    while running.has_work:
        reports += running.step()
    running.check_integrity()
    note(answers, [r for r in reports if isinstance(r, Delta) and r.request_id == "plain"])
    check_greedy(answers["plain", 0].tokens, set())
    assert [r.request_id for r in reports if isinstance(r, Failed)] == ["r"]
