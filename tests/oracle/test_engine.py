"""The engine on the table model: every proposal kind, alone and braided, with every disturbance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from plait.decoders.protocol import Decoder
from plait.server.engine.engine import Engine
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.pool.messages import Started
from plait.server.settings import EngineSettings
from tests.fixtures.engines import drain, request, run, table_engine
from tests.fixtures.greedy_decoders import (
    VOCAB,
    CanvasDecoder,
    ChainDecoder,
    GreedyDecoder,
    TreeDecoder,
    canvas_text,
    greedy_text,
)
from tests.fixtures.table_model import TableModel

HOSTS: dict[str, Decoder[Any]] = {
    each.name: each for each in (GreedyDecoder(), ChainDecoder(), TreeDecoder(), CanvasDecoder())
}


def oracle(host: str, prompt: Sequence[int], length: int) -> list[int]:
    return canvas_text(prompt, length) if host == "canvas" else greedy_text(prompt, length)


def prompts(count: int, *, seed: int, longest: int = 70) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def make(**fields: Any) -> Engine:
    num_blocks = fields.pop("num_blocks", 256)
    return table_engine(HOSTS, num_blocks=num_blocks, settings=EngineSettings(**fields))


@pytest.mark.parametrize("host", list(HOSTS))
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40])
def test_each_kind_alone(host: str, length: int) -> None:
    prompt = prompts(1, seed=length)[0]
    answer = run(make(), [request("a", prompt, length, decoding={"host": host})])["a", 0]
    assert answer.tokens == oracle(host, prompt, length)
    assert answer.finish == "length"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_step_tokens": 7},
        {"max_num_seqs": 3},
        {"prefix_caching": False},
        {"num_blocks": 24},
        {"num_blocks": 10, "max_step_tokens": 9},
    ],
    ids=str,
)
def test_all_kinds_in_one_batch(settings: dict[str, Any]) -> None:
    """Chunking, queueing, preemption and prefix hits change nothing, whatever the kinds."""
    rng = random.Random(5)
    texts = prompts(12, seed=1)
    texts += [[*text, 1, 2] for text in texts[:4]]  # these share their beginnings
    wanted = [(rng.choice(list(HOSTS)), text, rng.randint(1, 40)) for text in texts]
    requests = [
        request(f"r{i}", text, length, decoding={"host": host}, arrived=float(i))
        for i, (host, text, length) in enumerate(wanted)
    ]
    engine = make(**settings)
    have = run(engine, requests)
    want = [oracle(*each) for each in wanted]
    assert [have[f"r{i}", 0].tokens for i in range(len(want))] == want
    if "num_blocks" in settings:
        assert engine.stats().counters["num_preemptions"] > 0


def test_mixed_kinds_share_one_forward() -> None:
    model = TableModel()
    engine = table_engine(HOSTS, model=model)
    for host in HOSTS:
        engine.add(request(host, [1, 2, 3], 4, decoding={"host": host}))
    engine.step()
    assert model.num_forwards == 1
    assert model.max_rows == 4 * 3 + 0 + 3 + 4 + 4


def test_drafts_save_forwards() -> None:
    model = TableModel()
    run(table_engine(HOSTS, model=model), [request("a", [1], 40, decoding={"host": "tree"})])
    assert model.num_forwards == 14  # three tokens a forward


def test_siblings_share_the_prompt() -> None:
    prompt = prompts(1, seed=3, longest=100)[0] + [0] * 60
    model = TableModel()
    engine = table_engine(HOSTS, model=model)
    answers = run(engine, [request("a", prompt, 5, n=4)])
    assert [answers["a", i].tokens for i in range(4)] == [greedy_text(prompt, 5)] * 4
    assert engine.stats().counters["prompt_tokens"] == len(prompt) + 3  # one row a sibling


def test_prefix_cache_is_per_salt() -> None:
    prompt = [1, 2, 3, 4] * 12
    engine = make()
    run(engine, [request("a", prompt, 1)])
    run(engine, [request("b", prompt, 1)])
    assert engine.stats().counters["prefix_cache_hits"] == 32
    run(engine, [request("c", prompt, 1, cache_salt="other")])
    assert engine.stats().counters["prefix_cache_hits"] == 32


def test_waiting_for_blocks_is_one_query() -> None:
    """A request that is turned back at every step until blocks are free is looked up once."""
    engine = make(num_blocks=6)
    engine.add(request("a", [1] * 40, 30))
    engine.step()
    run(engine, [request("b", [2] * 40, 2, arrived=1.0)])
    assert engine.stats().counters["prefix_cache_queries"] == 39 + 39


def test_abort_frees_everything() -> None:
    engine = make()
    for i, prompt in enumerate(prompts(6, seed=9)):
        engine.add(request(f"r{i}", prompt, 30, n=2))
    for _ in range(3):
        engine.step()
    engine.abort("r0")
    engine.abort("r1", 1)
    engine.abort("unknown")
    answers = drain(engine)
    assert ("r0", 0) not in answers
    assert ("r1", 1) not in answers
    assert answers["r1", 0].finish == "length"
    assert engine.stats().kv_blocks_used == 0


def test_abort_before_the_first_step() -> None:
    engine = make()
    engine.add(request("a", [1], 3, n=2))
    engine.abort("a", 0)
    engine.add(request("b", [1], 3))
    engine.abort("b")
    answers = drain(engine)
    assert list(answers) == [("a", 1)]


def test_deadline_ends_a_request_wherever_it_is() -> None:
    engine = make(max_num_seqs=1)
    engine.add(request("late", [1], 3, deadline=0.0))
    engine.add(request("fine", [1], 3))
    answers = drain(engine)
    assert answers["late", 0].finish == "deadline"
    assert answers["fine", 0].finish == "length"


def test_priority_goes_first() -> None:
    engine = make(max_num_seqs=1)
    engine.add(request("low", [1], 2, priority=1, arrived=0.0))
    engine.add(request("high", [1], 2, priority=0, arrived=1.0))
    reports = [report for _ in range(4) for report in engine.step()]
    started = [report.request_id for report in reports if isinstance(report, Started)]
    assert started == ["high", "low"]


def test_what_can_never_fit_is_refused() -> None:
    engine = make(num_blocks=4)
    with pytest.raises(ContextTooLong, match="at most 48"):
        engine.add(request("a", [1] * 40, 9))
    with pytest.raises(BadRequest, match="no tokens"):
        engine.add(request("b", [], 9))
    with pytest.raises(BadRequest, match="vocabulary"):
        engine.add(request("c", [VOCAB], 9))
