"""The engine on the table model: every proposal kind, alone and braided, with every disturbance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from plait.decoders.contract.decoder import Decoder
from plait.server.engine.engine import Engine
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, Started
from tests.fixtures.engines import drain, request, run, table_engine
from tests.fixtures.greedy_canvases import (
    BlockDecoder,
    BranchDecoder,
    InPlaceDecoder,
    ShadowDecoder,
    canvas_oracle,
)
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

ROWS: dict[str, Decoder[Any]] = {
    each.name: each for each in (GreedyDecoder(), ChainDecoder(), TreeDecoder(), CanvasDecoder())
}
CANVASES: dict[str, Decoder[Any]] = {
    **{f"block-{size}": BlockDecoder(size) for size in (2, 4, 8, 16, 32, 48)},
    **{f"shift-{size}": BlockDecoder(size, shift=True) for size in (1, 4, 32)},
    **{f"branches-{size}": BranchDecoder(size) for size in (4, 16, 32)},
    **{f"shadow-{size}": ShadowDecoder(size) for size in (8, 32)},
    "in-place": InPlaceDecoder(),
}
HOSTS = ROWS | CANVASES


def oracle(host: str, prompt: Sequence[int], length: int) -> list[int]:
    if host in CANVASES:
        return canvas_oracle(prompt, length, host)
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
    answer = run(make(), [request("a", prompt, length, affinity=host)])["a", 0]
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
    texts = prompts(len(HOSTS), seed=1)
    texts += [[*text, 1, 2] for text in texts]  # these share their beginnings
    wanted = [
        (host, text, rng.randint(1, 40)) for host, text in zip([*HOSTS] * 2, texts, strict=True)
    ]
    requests = [
        request(f"r{i}", text, length, affinity=host, arrived=float(i))
        for i, (host, text, length) in enumerate(wanted)
    ]
    engine = make(**settings)
    have = run(engine, requests)
    want = [oracle(*each) for each in wanted]
    assert [have[f"r{i}", 0].tokens for i in range(len(want))] == want
    if "num_blocks" in settings:
        assert engine.stats().counters.num_preemptions > 0


def test_mixed_kinds_share_one_forward() -> None:
    model = TableModel()
    engine = table_engine(HOSTS, model=model)
    for host in ROWS:
        engine.add(request(host, [1, 2, 3], 4, affinity=host))
    engine.step()
    assert model.num_forwards == 1
    assert model.max_rows == 4 * 3 + 0 + 3 + 4 + 4


def test_canvases_share_one_forward() -> None:
    """Whole blocks of the prompt, then a canvas headed by what is left of it."""
    rows = {
        "greedy": 9,
        "block-4": 8 + 4,
        "block-32": 32,
        "shift-1": 9 + 1,
        "branches-4": 8 + 3 * 4,
        "shadow-8": 8 + 2 * 8,
        "in-place": 9 + 6,
    }
    model = TableModel()
    engine = table_engine(HOSTS, model=model)
    for host in rows:
        engine.add(request(host, [1] * 9, 6, affinity=host))
    engine.step()
    assert model.num_forwards == 1
    assert model.max_rows == sum(rows.values())


def test_a_step_keeps_to_its_rows() -> None:
    """Canvases and their drafts too: what does not fit waits, and comes to the same end."""
    hosts = ["block-8", "branches-4", "block-2", "branches-16"] * 5
    model = TableModel()
    engine = table_engine(HOSTS, model=model, settings=EngineSettings(max_step_tokens=40))
    texts = prompts(len(hosts), seed=4, longest=100)
    requests = [
        request(f"r{i}", text, 12, affinity=host, arrived=float(i))
        for i, (host, text) in enumerate(zip(hosts, texts, strict=True))
    ]
    have = run(engine, requests)
    for i, (host, text) in enumerate(zip(hosts, texts, strict=True)):
        assert have[f"r{i}", 0].tokens == oracle(host, text, 12)
    assert model.max_rows <= 40


def test_a_canvas_larger_than_a_step_goes_alone() -> None:
    model = TableModel()
    engine = table_engine(HOSTS, model=model, settings=EngineSettings(max_step_tokens=20))
    prompt = prompts(1, seed=6)[0] + [0] * 70
    for host in ("block-32", "in-place"):
        engine.add(request(host, prompt, 5, affinity=host))
    have = drain(engine)
    for host in ("block-32", "in-place"):
        assert have[host, 0].tokens == oracle(host, prompt, 5)
    assert model.max_rows == len(prompt) + 5


@pytest.mark.parametrize("host", ["branches-4", "branches-16", "branches-32"])
@pytest.mark.parametrize("num_blocks", [3, 4, 5])
def test_drafts_never_stop_a_lone_sequence(host: str, num_blocks: int) -> None:
    engine = make(num_blocks=num_blocks)
    have = run(engine, [request("a", [3] * 10, 22, affinity=host)])
    assert have["a", 0].tokens == oracle(host, [3] * 10, 22)
    assert engine.stats().counters.num_preemptions == 0


def test_drafts_of_canvases_save_forwards() -> None:
    counts = {}
    for host in ("block-16", "branches-16"):
        model = TableModel()
        run(table_engine(HOSTS, model=model), [request("a", [1], 63, affinity=host)])
        counts[host] = model.num_forwards
    assert counts["block-16"] == 63
    assert counts["branches-16"] <= 27


def test_what_wants_more_than_the_cache_fails_alone() -> None:
    engine = make(num_blocks=3)
    engine.add(request("big", [1] * 20, 10, affinity="shadow-32"))
    engine.add(request("fine", [1] * 20, 10, affinity="block-32"))
    reports = [report for _ in range(20) for report in engine.step()]
    failed = [report for report in reports if isinstance(report, Failed)]
    assert [(f.request_id, f.error) for f in failed] == [("big", "ContextTooLong")]
    ended = [r.request_id for r in reports if isinstance(r, Delta) and r.finish_reason]
    assert ended == ["fine"]
    engine.check_integrity()


@pytest.mark.parametrize(
    ("host", "fields", "error"),
    [
        ("block-48", {"max_tokens": 50}, "ContextTooLong"),  # its third block ends at 144
        ("block-5", {}, "BadRequest"),
        ("block-4", {"prompt_logprobs": 1}, "BadRequest"),
    ],
)
def test_canvases_that_cannot_run_are_refused(
    host: str, fields: dict[str, Any], error: str
) -> None:
    hosts: dict[str, Decoder[Any]] = {**HOSTS, "block-5": BlockDecoder(5)}
    engine = table_engine(hosts, num_blocks=9)
    fields = {"max_tokens": 5, **fields}
    engine.add(request("a", [1] * 50, affinity=host, **fields))
    reports = engine.step()
    assert [r.error for r in reports if isinstance(r, Failed)] == [error]
    assert not engine.has_work


def test_canvases_share_prefixes_by_whole_blocks() -> None:
    engine, prompt = make(), prompts(1, seed=8)[0] + [2] * 100
    prompt = prompt[:100]

    def hits(host: str) -> float:
        before = engine.stats().counters.prefix_cache_hits
        answers = run(engine, [request("a", prompt, 3, affinity=host)])
        assert answers["a", 0].tokens == oracle(host, prompt, 3)
        return engine.stats().counters.prefix_cache_hits - before

    assert [hits(host) for host in ("block-32", "block-4", "block-48", "in-place")] == [0] * 4
    assert [hits(host) for host in ("block-32", "block-4", "block-48", "in-place")] == [
        96,
        96,
        96,
        0,
    ]
    assert hits("branches-32") == 96  # equal blocks, equal keys, whoever decodes


@pytest.mark.parametrize("host", ["block-4", "block-32", "branches-16", "shift-32", "in-place"])
def test_siblings_with_canvases(host: str) -> None:
    """They share the prompt's whole blocks; with none, each reads it for itself."""
    prompt = (prompts(1, seed=3)[0] + [0] * 60)[:61]
    engine = make()
    answers = run(engine, [request("a", prompt, 5, n=4, affinity=host)])
    assert [answers["a", i].tokens for i in range(4)] == [oracle(host, prompt, 5)] * 4
    shared = {"block-4": 60, "branches-16": 48, "in-place": 0}.get(host, 32)
    assert engine.stats().counters.prompt_tokens == 61 + 3 * (61 - shared)


def test_canvases_are_counted() -> None:
    engine = make()
    run(engine, [request("a", [1] * 9, 7, affinity="block-8"), request("b", [1], 2)])
    counters = engine.stats().counters
    assert counters.generation_tokens == 9
    assert counters.diffusion.committed_tokens == 7
    assert counters.diffusion.num_forwards == 7
    assert counters.diffusion.canvas_rows == 7 * 8


def test_drafts_save_forwards() -> None:
    model = TableModel()
    run(table_engine(HOSTS, model=model), [request("a", [1], 40, affinity="tree")])
    assert model.num_forwards == 14  # three tokens a forward


def test_siblings_share_the_prompt() -> None:
    prompt = prompts(1, seed=3, longest=100)[0] + [0] * 60
    model = TableModel()
    engine = table_engine(HOSTS, model=model)
    answers = run(engine, [request("a", prompt, 5, n=4)])
    assert [answers["a", i].tokens for i in range(4)] == [greedy_text(prompt, 5)] * 4
    assert engine.stats().counters.prompt_tokens == len(prompt) + 3  # one row a sibling


def test_prefix_cache_is_per_salt() -> None:
    prompt = [1, 2, 3, 4] * 12
    engine = make()
    run(engine, [request("a", prompt, 1)])
    run(engine, [request("b", prompt, 1)])
    assert engine.stats().counters.prefix_cache_hits == 32
    run(engine, [request("c", prompt, 1, cache_salt="other")])
    assert engine.stats().counters.prefix_cache_hits == 32


def test_waiting_for_blocks_is_one_query() -> None:
    """A request that is turned back at every step until blocks are free is looked up once."""
    engine = make(num_blocks=6)
    engine.add(request("a", [1] * 40, 30))
    engine.step()
    run(engine, [request("b", [2] * 40, 2, arrived=1.0)])
    assert engine.stats().counters.prefix_cache_queries == 39 + 39


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
