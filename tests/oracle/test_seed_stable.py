"""Law 1: a request's tokens depend on the request alone, on real transformer arithmetic.

The reference runs one sequence at a time. The disturbances are those of a busy server: company in
the batch, prompts cut into chunks, preemption, a prefix cache that is hot or off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.decoders.contract.decoder import TokenLogprobs
from plait.kernels import extension
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.settings import WeightMode
from tests.fixtures.engines import ALONE, check_seed_stable, model_engine, run, texts, tiny
from tests.fixtures.random_requests import random_requests

DISTURBANCES: dict[str, dict[str, Any]] = {
    "batch of 16": {"max_num_seqs": 16},
    "chunks of 16 rows": {"max_num_seqs": 16, "max_step_tokens": 16},
    "prefix cache off": {"max_num_seqs": 16, "prefix_caching": False},
    "preemption": {"max_num_seqs": 16, "num_blocks": 12},
}


@pytest.mark.parametrize("mode", ["fp32", "bf16", "int8", "int4", "int4fixed"])
def test_nothing_around_a_request_changes_it(tmp_path: Path, mode: WeightMode) -> None:
    """200 requests, four disturbances; compiled kernels owe equal bits in every weight mode."""
    if mode != "fp32" and not extension.is_available():
        pytest.skip("the torch oracles promise equal tokens in fp32 only")
    model = tiny(tmp_path, mode)
    requests = random_requests(200, model.vocab_size, seed=1)
    check_seed_stable(model, requests, DISTURBANCES)


def test_oracle_kernels_are_seed_stable(tmp_path: Path) -> None:
    model = tiny(tmp_path, "fp32", reference=True)
    requests = random_requests(40, model.vocab_size, seed=2)
    want = texts(model_engine(model, **ALONE), requests)
    assert texts(model_engine(model, max_num_seqs=16, max_step_tokens=16), requests) == want


def test_logprobs_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = tiny(tmp_path, "fp32")
    requests = [r for r in random_requests(60, 300, seed=3) if r.sampling.logprobs is not None]
    have, want = (
        {
            name: [entry for delta in answer.deltas for entry in delta.logprobs or ()]
            for name, answer in run(model_engine(model, **settings), requests).items()
        }
        for settings in ({"max_num_seqs": 16}, ALONE)
    )
    assert have.keys() == want.keys()
    for name, entries in want.items():
        assert all(isinstance(entry, TokenLogprobs) for entry in entries)
        assert [e.token_id for e in have[name]] == [e.token_id for e in entries]
        assert [e.logprob for e in have[name]] == pytest.approx(
            [e.logprob for e in entries], abs=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp32", "auto"])
def test_default_model_is_seed_stable(mode: WeightMode) -> None:
    """SmolLM2 with real weights: the same requests alone, in company, chunked, preempted.

    50 of them, since real weights are slow; the tiny models of the same code get 200.
    """
    if not extension.is_available():
        pytest.skip("needs the compiled kernels to end in time")
    model = load_model(resolve("smollm2-135m-instruct"), weights=mode)
    requests = random_requests(50, model.vocab_size, seed=4, longest=20, max_tokens=4)
    want = texts(model_engine(model, **ALONE), requests)
    for name, settings in DISTURBANCES.items():
        assert texts(model_engine(model, **settings), requests) == want, name
