"""Law 1 on canvases: the same request gives the same tokens, whatever surrounds it.

On a real transformer, through the real engine: random methods, block sizes and parameters, alone
and side by side, in chunks, preempted, over a hot prefix cache, with and without drafts.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from plait.decoders.resolve import resolve_decoding
from plait.kernels import extension
from plait.server.models.transformer import Transformer
from plait.server.settings import WeightMode
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.engines import ALONE, check_seed_stable, model_engine, texts, tiny
from tests.fixtures.random_requests import random_requests

DISTURBANCES: dict[str, dict[str, Any]] = {
    "batch of 16": {"max_num_seqs": 16},
    "few rows": {"max_num_seqs": 16, "max_step_tokens": 64},
    "prefix cache off": {"max_num_seqs": 16, "prefix_caching": False},
    "preemption": {"max_num_seqs": 16, "num_blocks": 14},
}
SIZES = (1, 4, 8, 16, 32)
UNMASKERS: list[Any] = [
    "auto",
    "off",
    "static",
    "wino",
    {"name": "threshold", "threshold": 0.2},
    [{"name": "threshold", "threshold": 0.2}, "free-dave"],
    [{"name": "static", "tokens_per_step": 2}, "credit"],
    [{"name": "klass", "threshold": 0.2, "divergence": 0.1}, "eotp"],
    [{"name": "local-leap", "anchor": 0.3, "relaxed": 0.1}, "free-dave"],
]
CACHED: list[Any] = [
    ["static", "prefix-cache"],
    [{"name": "threshold", "threshold": 0.2}, "dual-cache"],
    ["factor", "dkv-cache"],
    ["static", "recap"],
]


def canvas_requests(
    count: int, model: Transformer, *, seed: int, full: bool
) -> list[GenerateRequest]:
    """Return requests of every kind that the model takes."""
    rng = random.Random(seed)
    made = []
    for request in random_requests(count, model.vocab_size, seed=seed, max_tokens=20):
        decoding: dict[str, Any] = {"unmasker": rng.choice(UNMASKERS)}
        if full and rng.random() < 0.4:
            decoding = {"unmasker": rng.choice([*UNMASKERS, *CACHED, *CACHED])}
            decoding["canvas"] = {"attention": "full"}
        elif decoding["unmasker"] != "off":
            decoding["canvas"] = {"block_size": rng.choice(SIZES)}
        made.append(replace(request, decoding=resolve_decoding(decoding, model.diffusion)))
    return made


@pytest.mark.parametrize("mode", ["fp32", "bf16", "int8", "int4", "int4fixed"])
def test_nothing_around_a_canvas_changes_it(tmp_path: Path, mode: WeightMode) -> None:
    """Compiled kernels owe equal bits in every weight mode."""
    if mode != "fp32" and not extension.is_available():
        pytest.skip("the torch oracles promise equal tokens in fp32 only")
    model = tiny(tmp_path, mode, model_type="sdar")
    check_seed_stable(model, canvas_requests(10, model, seed=1, full=True), DISTURBANCES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_two_hundred_canvases_are_seed_stable(tmp_path: Path, mode: WeightMode) -> None:
    model = tiny(tmp_path, mode, model_type="sdar")
    check_seed_stable(model, canvas_requests(200, model, seed=3, full=True), DISTURBANCES)


def test_models_that_predict_the_next_token_are_seed_stable(tmp_path: Path) -> None:
    model = tiny(tmp_path, "fp32", model_type="sdar", right_shift_logits=True)
    assert model.diffusion is not None
    assert model.diffusion.shift
    requests = canvas_requests(14, model, seed=4, full=True)
    check_seed_stable(model, [r for r in requests if "wino" not in str(r.decoding)], DISTURBANCES)


def test_oracle_kernels_are_seed_stable(tmp_path: Path) -> None:
    model = tiny(tmp_path, "fp32", model_type="sdar", reference=True)
    requests = canvas_requests(10, model, seed=2, full=True)
    want = texts(model_engine(model, **ALONE), requests)
    assert texts(model_engine(model, max_num_seqs=16, max_step_tokens=64), requests) == want
