"""Every method inside the host: drafts change nothing, caches that compute all change nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.selectors.learn2pd import FILE
from plait.decoders.diffusion.spec import Attention, DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, decode_request, drive
from tests.fixtures.hash_model import HashLaw

LAW = HashLaw(radius=3, coupling=0.8)
END, BLOCK = 7, 8
DELIMITERS = range(20)
SELECTORS: list[Any] = [
    {"name": "static"},
    {"name": "static", "tokens_per_step": 2, "strategy": "margin"},
    {"name": "random", "tokens_per_step": 2},
    {"name": "threshold", "threshold": 0.4},
    {"name": "dynamic", "threshold": 0.4, "tokens_per_step": 2},
    {"name": "factor", "factor": 1.5},
    {"name": "entropy-bound", "bound": 1.0},
    {"name": "d-parallel", "threshold": 1.5},
    {"name": "local-leap", "anchor": 0.5, "relaxed": 0.3},
    {"name": "local-leap", "anchor": 0.5, "relaxed": 0.3, "anchors": "previous_step"},
    {"name": "hierarchy", "threshold": 0.5, "low": 0.3},
    {"name": "klass", "threshold": 0.3, "divergence": 0.5, "history": 1},
    {"name": "learn2pd", "threshold": 0.6},
]
CHAINS = [
    *([selector] for selector in SELECTORS),
    *([selector, "credit"] for selector in SELECTORS[3::3]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(0)
    tensors = {f"block{BLOCK}.{i}.weight": rng.normal(size=(BLOCK, BLOCK)) for i in (0, 2)}
    save_file(tensors | {f"block{BLOCK}.{i}.bias": np.zeros(BLOCK) for i in (0, 2)}, path / FILE)
    return path


def decoder(folder: Path | None = None, *, full: bool = False) -> DiffusionDecoder:
    attention: Attention = "full" if full else "block"
    spec = DiffusionSpec(LAW.mask_id, (END,), attention, BLOCK, canvas=24)
    return DiffusionDecoder(spec, LAW.vocab, folder=folder, delimiters=lambda: DELIMITERS)


def requests(unmasker: Any, *, count: int = 6, heat: float = 0.0) -> list[DecodeRequest]:
    rng = random.Random(5)
    return [
        decode_request(
            [rng.randrange(LAW.vocab - 1) for _ in range(rng.randint(1, 12))],
            rng.randint(8, 24),
            {"unmasker": unmasker},
            params=SamplingParams(temperature=heat, seed=3),
            stops=frozenset({END}),
        )
        for _ in range(count)
    ]


def same(have: list[Run], want: list[Run], *, passes: bool = True) -> bool:
    """Tell whether texts and endings agree, and the number of passes."""
    texts = [(run.answer, run.finish) for run in have] == [(r.answer, r.finish) for r in want]
    counts = [len(run.outcomes) for run in have] == [len(run.outcomes) for run in want]
    return texts and (counts or not passes)


@pytest.mark.parametrize(("full", "heat"), [(False, 1.0), (True, 0.0)])
@pytest.mark.parametrize("parts", CHAINS, ids=str)
def test_drafts_change_no_method(folder: Path, parts: list[Any], full: bool, heat: float) -> None:
    host = decoder(folder, full=full)
    plain = drive(host, LAW, requests(parts, heat=heat))
    eager = drive(host, LAW, requests([*parts, "free-dave"], heat=heat), room=10_000)
    assert same(eager, plain, passes=False)
    assert [run.state.emitted_steps for run in eager] == [run.state.emitted_steps for run in plain]
    for have, want in zip(eager, plain, strict=True):
        assert len(have.outcomes) <= len(want.outcomes)


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_a_batch_decodes_as_its_members_alone(folder: Path, selector: Any) -> None:
    together = drive(decoder(folder), LAW, requests(selector, heat=1.0))
    alone = [drive(decoder(folder), LAW, [request])[0] for request in requests(selector, heat=1.0)]
    assert same(together, alone)


@pytest.mark.parametrize(
    "cache",
    [
        {"name": "dkv-cache", "refresh": 1},
        {"name": "recap", "local": 0},
        {"name": "recap", "full_first": 1000},
        {"name": "dual-cache", "around": 1000},
    ],
    ids=str,
)
@pytest.mark.parametrize("selector", ["static", {"name": "threshold", "threshold": 0.4}], ids=str)
def test_a_cache_that_computes_all_changes_nothing(selector: Any, cache: Any) -> None:
    host = decoder(full=True)
    want = drive(host, LAW, requests([selector], heat=1.0))
    assert same(drive(host, LAW, requests([selector, cache], heat=1.0)), want)


@pytest.mark.parametrize(
    "cache", ["prefix-cache", "dual-cache", "dkv-cache", {"name": "recap", "active": 3}], ids=str
)
@pytest.mark.parametrize("selector", ["static", {"name": "threshold", "threshold": 0.4}], ids=str)
def test_an_approximate_cache_survives_eviction(selector: Any, cache: Any) -> None:
    host = decoder(full=True)
    want = drive(host, LAW, requests([selector, cache]))
    have = drive(host, LAW, requests([selector, cache]), evict=frozenset({2, 5, 9}))
    assert same(have, want, passes=False)


@pytest.mark.parametrize("selector", ["static", {"name": "threshold", "threshold": 0.4}], ids=str)
def test_an_active_set_leaves_holes_out(selector: Any) -> None:
    """Between two full passes one hole is computed, and what was settled just before: 2 at most."""
    host = decoder(full=True)
    recap = {"name": "recap", "local": 1, "active": 1}
    runs = drive(host, LAW, requests([selector, recap]))
    for run, request in zip(runs, requests([selector, recap]), strict=True):
        size = len(request.text.prompt) + request.max_tokens
        full_passes = -(-len(run.outcomes) // 2)
        assert run.num_rows <= full_passes * size + len(run.outcomes) // 2 + len(run.answer) + 1


@pytest.mark.parametrize("full", [False, True])
def test_wino_opens_and_comes_to_its_end(full: bool) -> None:
    bold, careful = ({"name": "wino", "draft": 0.0, "verify": bar} for bar in (0.0, 0.9))
    host = decoder(full=full)
    runs = drive(host, LAW, requests(careful))
    assert not same(runs, drive(host, LAW, requests(bold)), passes=False)
    for run, request in zip(runs, requests(careful), strict=True):
        assert run.finish == "stop" or len(run.answer) == request.max_tokens


def test_ada_block_that_trusts_nothing_keeps_fixed_blocks() -> None:
    window = {"name": "ada-block", "threshold": 1.5}
    host = decoder(full=True)
    for heat in (0.0, 1.0):
        want = drive(host, LAW, requests("static", heat=heat))
        assert same(drive(host, LAW, requests(["static", window], heat=heat)), want)
    trusting = {"name": "ada-block", "threshold": 0.0}
    have = drive(host, LAW, requests(["static", trusting], heat=1.0))
    assert not same(have, want, passes=False)


def test_a_long_chain_with_and_without_drafts() -> None:
    leap = {"name": "local-leap", "anchor": 0.5, "relaxed": 0.3}
    parts = [{"name": "ada-block", "threshold": 0.1}, "credit", leap, {"name": "eotp"}]
    host = decoder(full=True)
    for heat in (0.0, 1.0):
        plain = drive(host, LAW, requests(parts, heat=heat))
        eager = drive(host, LAW, requests([*parts, "free-dave"], heat=heat), room=10_000)
        assert same(eager, plain, passes=False)
