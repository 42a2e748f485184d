"""Masks, bans, penalties and noise are made where the logits are: no operation mixes two devices.

A model on a device that refuses tensors of the host answers every kind of request, and gives the
texts that the reference kernels give on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.draft_model.cached import CachedDraftModel
from plait.server.engine.engine import Engine
from plait.server.engine.kv.block_table import BLOCK_SIZE
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.runner import Runner
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, GenerateRequest
from tests.fixtures.engines import request, run
from tests.fixtures.fake_device import FAKE, DeviceTensor, fake_device
from tests.fixtures.random_requests import random_requests
from tests.fixtures.tiny_models import write_tiny_model
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

NUM_BLOCKS = 128
WORDS = CompiledConstraint("words", b"", 1)


def engine_of(model: Transformer) -> Engine:
    """Return an engine whose constraints all are WordConstraints."""
    runner = Runner(model, model.new_kv_cache(NUM_BLOCKS), model.backend)
    host = _decoder(model)
    admission = Admission(
        EngineCapacity((NUM_BLOCKS - 1) * BLOCK_SIZE, model.vocab_size, model.fingerprint),
        lambda request: host,
        lambda compiled: WordConstraint(LANGUAGE, END),
    )
    manager = KVCacheManager(NUM_BLOCKS, runner.copy_block)
    return Engine(runner, manager, admission, EngineSettings(max_num_seqs=4, max_step_tokens=32))


def _decoder(model: Transformer) -> AutoregressiveDecoder | DiffusionDecoder:
    if model.diffusion is not None:
        return DiffusionDecoder(model.diffusion, model.vocab_size, backend=model.backend)
    context = DrafterContext(
        model.vocab_size,
        backend=model.backend,
        embedding=model.embedding,
        draft_model=CachedDraftModel(
            model,
            model.new_kv_cache(32),
            vocab_size=model.vocab_size,
            max_positions=model.max_positions,
            backend=model.backend,
        ),
    )
    speculator = Speculator(context, context.costs)
    return AutoregressiveDecoder(model.vocab_size, backend=model.backend, speculator=speculator)


def plain(model: Transformer) -> list[GenerateRequest]:
    """Every sampling parameter, n > 1, log-probabilities; one reports on its prompt."""
    requests = random_requests(6, 300, seed=11, max_tokens=5)
    return [*requests, request("prompt", range(3, 40), 3, prompt_logprobs=2)]


def constrained(model: Transformer) -> list[GenerateRequest]:
    """Constraints alone, with a truncation, with penalties, greedy, with bans."""
    params = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.9),
        SamplingParams(seed=3, repetition_penalty=1.3, logprobs=2),
        SamplingParams(temperature=0.0),
        SamplingParams(seed=4, bad_words=((0, 1),), logit_bias={2: 1.5}, min_tokens=2),
    ]
    return [
        request(f"c{i}", [7, 8, 9 + i], 8, sampling=each, constraint=WORDS, stop_token_ids=[END])
        for i, each in enumerate(params)
    ]


def drafted(model: Transformer) -> list[GenerateRequest]:
    """Drafts of a look-up and of a draft model, some under constraints."""
    made = []
    for drafter in ({"name": "n-gram", "min_n": 1}, {"name": "draft-model"}):
        decoding = resolve_decoding({"drafter": {**drafter, "always": True, "max_draft": 4}})
        requests = [*random_requests(3, 12, seed=6, max_tokens=6), *constrained(model)[:2]]
        made += [
            replace(each, request_id=f"{drafter['name']} {each.request_id}", decoding=decoding)
            for each in requests
        ]
    return made


def canvases(model: Transformer) -> list[GenerateRequest]:
    """Diffusion with several unmaskers, one of which rereads shadow rows; some constrained."""
    made = []
    for unmasker in ("wino",):
        decoding = resolve_decoding(
            {"unmasker": unmasker, "canvas": {"block_size": 8}}, model.diffusion
        )
        requests = [*random_requests(2, 300, seed=3, max_tokens=6), *constrained(model)[:1]]
        made += [
            replace(each, request_id=f"{unmasker} {each.request_id}", decoding=decoding)
            for each in requests
        ]
    return made


@pytest.mark.parametrize(
    ("requests", "config"),
    [
        pytest.param(plain, {}, id="plain"),
        pytest.param(constrained, {}, id="constrained"),
        pytest.param(drafted, {}, id="drafted"),
        pytest.param(canvases, {"model_type": "sdar"}, id="diffusion"),
    ],
)
def test_no_operation_mixes_devices(
    tmp_path: Path,
    requests: Callable[[Transformer], Sequence[GenerateRequest]],
    config: dict[str, Any],
) -> None:
    files = resolve(str(write_tiny_model(tmp_path, **config)))
    on_cpu = load_model(files, weights="fp32", reference=True)
    want = run(engine_of(on_cpu), requests(on_cpu))
    with fake_device():
        model = load_model(files, weights="fp32", device=str(FAKE))
        have = run(engine_of(model), requests(model))
    assert model.backend.name == "reference"
    assert isinstance(model.embedding, DeviceTensor)
    assert {name: answer.tokens for name, answer in have.items()} == {
        name: answer.tokens for name, answer in want.items()
    }
    assert any(len(answer.tokens) > 2 for answer in have.values())


def test_the_fake_device_refuses_tensors_of_the_host() -> None:
    with fake_device():
        there, here = torch.zeros(3, device=FAKE), torch.arange(3)
        assert there.device == FAKE
        assert (there + here.to(FAKE)).tolist() == [0.0, 1.0, 2.0]
        assert not isinstance(there.cpu(), DeviceTensor)
        with pytest.raises(RuntimeError, match="of the host"):
            there += here
        with pytest.raises(RuntimeError, match="of the host"):
            there[here] = 1.0
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
