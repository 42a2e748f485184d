"""A search that forks 32 particles for 200 steps on SmolLM2 leaves no block behind."""

from __future__ import annotations

import time

import pytest

from benchmarks.lossless import MODEL
from plait.decoders.sampling.params import SamplingParams
from plait.kernels import extension
from plait.server.engine.build import build_engine
from plait.server.engine.group import group as groups
from plait.server.models.catalog import ModelFiles
from plait.server.settings import EngineSettings
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.random_search import RandomSearch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not extension.is_available(), reason="the reference kernels are too slow"),
]


def test_particles_leave_no_block_behind(
    smollm2_files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run to its end with a cache that is too small, aborted half-way, and out of time."""
    settings = EngineSettings(MODEL, max_num_seqs=64, kv_cache_bytes=2**24)
    engine, info = build_engine(settings)
    search = RandomSearch(num_steps=200, width=32, vocab_size=info.vocab_size)
    monkeypatch.setattr(groups, "make_search", lambda request: search)
    prompt = list(range(100, 160))
    for kind in ("aborted", "late", "whole"):
        deadline = time.monotonic() + 2 if kind == "late" else None
        sampling = SamplingParams(seed=3)
        engine.add(GenerateRequest(kind, prompt, sampling, 400, n=2, deadline=deadline))
        num_steps = 0
        while engine.has_work:
            engine.step()
            num_steps += 1
            if num_steps == 60:
                engine.abort("aborted")
        engine.check_integrity()
        assert engine.stats().kv_blocks_used == 0
    assert search.history[-1].num_steps == 200
    assert search.history[-1].num_members > 500
    assert engine.stats().counters.num_preemptions > 0
