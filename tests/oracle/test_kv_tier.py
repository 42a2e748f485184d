"""Evicted blocks come back from a lower tier, and no text changes by it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from plait.kernels.dispatch import cpu_backend
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.engine import Engine
from plait.server.engine.kv.block_table import BLOCK_SIZE
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.runner import Runner
from plait.server.settings import EngineSettings
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.engines import drain, no_constraints, request, run
from tests.fixtures.greedy_decoders import VOCAB, GreedyDecoder, greedy_text
from tests.fixtures.memory_tier import MemoryTier
from tests.fixtures.table_model import TableModel


def make(*, num_blocks: int = 12, max_num_seqs: int = 8, **tier: Any) -> tuple[Engine, MemoryTier]:
    model = TableModel()
    runner = Runner(model, model.new_kv_cache(num_blocks), cpu_backend())
    memory = MemoryTier(runner.kv, **tier)
    capacity = EngineCapacity((num_blocks - 1) * BLOCK_SIZE, VOCAB, "table")
    decoder = GreedyDecoder()
    engine = Engine(
        runner,
        KVCacheManager(num_blocks, runner.copy_block, tier=memory),
        Admission(capacity, lambda request: decoder, no_constraints),
        EngineSettings(max_num_seqs=max_num_seqs),
    )
    return engine, memory


def prompt_of(seed: int, length: int = 70) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def fill(engine: Engine, prompt: list[int], *, num_others: int = 3) -> None:
    """Run a prompt, then others until its blocks are evicted."""
    run(engine, [request("a", prompt, 5)])
    for seed in range(101, 101 + num_others):
        run(engine, [request("other", prompt_of(seed), 5)])


def answer(engine: Engine, name: str, prompt: list[int]) -> list[int]:
    return run(engine, [request(name, prompt, 5)])[name, 0].tokens


@pytest.mark.parametrize("tier", [{}, {"lookup_polls": 3}, {"load_polls": 0}], ids=str)
def test_an_evicted_prefix_is_loaded(tier: dict[str, Any]) -> None:
    engine, memory = make(**tier)
    prompt = prompt_of(1)
    fill(engine, prompt)
    before = engine.stats().counters.prefix_cache_hits
    assert answer(engine, "again", prompt) == greedy_text(prompt, 5)
    assert memory.num_loads == 4
    assert engine.stats().counters.prefix_cache_hits - before == 64


def test_a_loading_sequence_is_not_scheduled_and_others_go_on() -> None:
    engine, memory = make(load_polls=4)
    prompt, other = prompt_of(1), prompt_of(2, 20)
    fill(engine, prompt)
    engine.add(request("again", prompt, 5, arrived=0.0))
    engine.add(request("other", other, 3, arrived=1.0))
    answers = drain(engine)
    assert answers["again", 0].tokens == greedy_text(prompt, 5)
    assert answers["other", 0].tokens == greedy_text(other, 3)
    assert memory.num_loads == 4


def test_what_loads_is_shared_by_all_who_want_it() -> None:
    engine, memory = make(num_blocks=20, load_polls=3)
    prompt = prompt_of(1)
    fill(engine, prompt, num_others=5)
    answers = run(engine, [request(f"r{i}", prompt, 5, n=2) for i in range(3)])
    assert [a.tokens for a in answers.values()] == [greedy_text(prompt, 5)] * 6
    assert memory.num_loads == 4


def test_a_failed_load_is_recomputed() -> None:
    engine, memory = make(failures=2)
    prompt = prompt_of(1)
    fill(engine, prompt)
    assert answer(engine, "again", prompt) == greedy_text(prompt, 5)
    assert memory.failures == 0
    assert engine.stats().counters.num_preemptions == 1


def test_a_block_is_not_reused_while_it_loads() -> None:
    """Whoever waited for it has gone; the transfer still writes to it."""
    engine, memory = make(load_polls=6)
    prompt, others = prompt_of(1), [prompt_of(seed, 60) for seed in range(20, 26)]
    fill(engine, prompt)
    engine.add(request("gone", prompt, 5))
    engine.step()
    assert memory.num_loads == 4
    engine.abort("gone")
    engine.check_integrity()
    have = run(engine, [request(f"r{i}", each, 9) for i, each in enumerate(others)])
    assert [have[f"r{i}", 0].tokens for i in range(6)] == [greedy_text(o, 9) for o in others]
    assert answer(engine, "again", prompt) == greedy_text(prompt, 5)


def requests_of(rng: random.Random) -> list[GenerateRequest]:
    """Return requests over a few shared beginnings."""
    texts = [prompt_of(rng.randrange(4), 48) + prompt_of(rng.randrange(6), 20) for _ in range(12)]
    return [
        request(f"r{i}", text, rng.randint(1, 30), n=rng.choice([1, 1, 3]), arrived=float(i))
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_through_a_small_cache(seed: int) -> None:
    """Evictions, pending lookups, failing loads and preemptions at once; every text is right."""
    rng = random.Random(seed)
    engine, memory = make(num_blocks=14, lookup_polls=rng.randint(0, 2), failures=5)
    for _ in range(3):
        requests = requests_of(rng)
        have = run(engine, requests)
        for each in requests:
            want = greedy_text(each.prompt_token_ids, each.max_tokens)
            assert [have[each.request_id, i].tokens for i in range(each.n)] == [want] * each.n
    assert memory.num_loads > 10
    assert engine.stats().counters.num_preemptions > 0
