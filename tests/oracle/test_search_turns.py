"""Searches beside requests without one: they give way, get on, and come to the same texts."""

from __future__ import annotations

from typing import Any

import pytest

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoding import DecodingSpec, MethodSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.engine import Engine
from plait.server.engine.turns import SLOWDOWN
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, GenerateRequest
from tests.fixtures.engines import request, run, table_engine

VOCAB = 6
SEARCHES = [
    ("smc", {"num_particles": 16}),
    ("best-of", {"num_samples": 16}),
    ("beam", {"beam_width": 16}),
    ("mcmc", {"num_parallel": 16, "num_steps": 3}),
]


def engine() -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    return table_engine({host.name: host}, num_blocks=1024, settings=EngineSettings())


def searching(i: int, max_tokens: int = 12) -> GenerateRequest:
    name, options = SEARCHES[i % len(SEARCHES)]
    spec = DecodingSpec(search=MethodSpec(name, options))
    return request(
        f"s{i}", [1, 2, i % VOCAB], max_tokens, sampling=SamplingParams(seed=i), decoding=spec
    )


def plain(i: int, max_tokens: int = 12) -> GenerateRequest:
    return request(f"p{i}", [3, i % VOCAB], max_tokens, sampling=SamplingParams(seed=i))


def texts(requests: list[GenerateRequest]) -> dict[Any, Any]:
    found = run(engine(), requests)
    return {key: (answer.tokens, answer.finish) for key, answer in found.items()}


def test_company_changes_no_text() -> None:
    searches, others = [searching(i) for i in range(4)], [plain(i, 40) for i in range(3)]
    want = texts(searches) | texts(others)
    assert texts([*others, *searches]) == want


def test_a_step_takes_little_longer() -> None:
    """A table engine knows of no costs: every row counts the same, so a few rows are added.

    Members that read a prompt, as proposals of mcmc do, are not counted.
    """
    running = engine()
    for i in range(8):
        running.add(plain(i, 60))
    for i in (0, 1, 4):
        running.add(searching(i, 60))
    for _ in range(6):  # prompts and forks
        running.step()
    running.stats()
    for _ in range(20):
        running.step()
    assert max(running.stats().step_tokens) <= int(SLOWDOWN * 8)
    assert min(running.stats().step_tokens, default=8) >= 8


@pytest.mark.parametrize("i", range(4))
def test_every_search_gets_on_beside_one_stream(i: int) -> None:
    """One row for one row: sixteen members take turns, and the search comes to its end."""
    running, ended = engine(), False
    running.add(plain(0, 4000))
    running.add(searching(i, 6))
    for _ in range(800):
        reports = [r for r in running.step() if isinstance(r, Delta) and r.request_id == f"s{i}"]
        ended |= any(report.finish_reason for report in reports)
    assert ended


def test_searches_alone_all_run() -> None:
    running = engine()
    for i in range(3):
        running.add(searching(i, 30))
    for _ in range(12):
        running.step()
    assert max(running.stats().step_tokens[-4:]) >= 40


def small_engine(max_num_seqs: int) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    settings = EngineSettings(max_num_seqs=max_num_seqs)
    return table_engine({host.name: host}, num_blocks=1024, settings=settings)


def test_particles_that_wait_for_their_group_take_no_places() -> None:
    """Sixteen particles in four places take turns with their blocks; none is recomputed."""
    running, want = small_engine(4), texts([searching(0, 20)])
    found = run(running, [searching(0, 20)])
    assert {key: (each.tokens, each.finish) for key, each in found.items()} == want
    assert running._scheduler.num_preemptions == 0


@pytest.mark.parametrize("i", range(4))
def test_a_plain_request_waits_for_no_members_place(i: int) -> None:
    """A search has every place; a request without one begins at once, and gets on in each step."""
    running = small_engine(4)
    running.add(searching(i, 400))
    for _ in range(8):
        running.step()
    running.add(plain(0, 20))
    tokens = 0
    for _ in range(24):
        reports = [r for r in running.step() if isinstance(r, Delta) and r.request_id == "p0"]
        tokens += sum(len(report.token_ids) for report in reports)
    assert tokens == 20


def test_what_the_curve_allows_is_used() -> None:
    """Where rows cost little, searches get many of them."""
    flat = CostCurve({1: 1.0, 64: 1.5, 512: 4.0})
    running = engine()
    running._scheduler._costs = flat
    for i in range(4):
        running.add(plain(i, 60))
    for i in range(3):
        running.add(searching(i, 60))
    for _ in range(12):
        running.step()
    assert max(running.stats().step_tokens[-4:]) >= 40
