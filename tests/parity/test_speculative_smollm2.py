"""Law 2 on SmolLM2: no drafter changes a token or a logprob. benchmarks/lossless.py runs more."""

from __future__ import annotations

import pytest

from benchmarks.lossless import MODEL, differences, plain, random_requests, served
from plait.kernels import extension
from plait.server.engine.build import build_engine
from plait.server.models.catalog import ModelFiles
from plait.server.settings import EngineSettings, WeightMode

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not extension.is_available(), reason="the oracles are too slow"),
]


@pytest.mark.parametrize("weights", ["fp32", "auto"])
def test_no_drafter_changes_an_answer(smollm2_files: ModelFiles, weights: WeightMode) -> None:
    engine, info = build_engine(
        EngineSettings(MODEL, weights=weights, threads=1, kv_cache_bytes=2**27)
    )
    requests = random_requests(20, max_tokens=12)
    want = plain(engine, requests)
    for drafter in ("n-gram", "aded", "forced"):
        assert drafter in served(info.capabilities)
        assert [str(each) for each in differences(engine, requests, want, drafter)] == []
    counters = engine.stats().counters
    for drafter in ("n-gram", "aded", "forced"):
        assert counters.speculation.accepted_tokens[drafter] > 0
