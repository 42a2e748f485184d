"""Law 2 on real transformer arithmetic: rows of chains and trees owe the bits of plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.resolve import resolve_decoding
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.kernels import extension
from plait.kernels.dispatch import cpu_backend
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.engine import Engine
from plait.server.engine.kv.block_table import BLOCK_SIZE
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.runner import Runner
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.settings import EngineSettings, WeightMode
from tests.fixtures.adversaries import adversaries  # noqa: F401, a fixture
from tests.fixtures.engines import no_constraints, run
from tests.fixtures.random_requests import random_requests
from tests.fixtures.tiny_models import write_tiny_model

DRAFTERS: tuple[dict[str, Any], ...] = (
    {"name": "n-gram", "min_n": 1},
    {"name": "aded"},
    {"name": "adversary", "kind": "fan"},
    {"name": "adversary", "kind": "tree"},
)


def engine_of(model: Transformer, num_blocks: int = 512) -> Engine:
    context = DrafterContext(model.vocab_size)
    host = AutoregressiveDecoder(model.vocab_size, speculator=Speculator(context, context.costs))
    runner = Runner(model, model.new_kv_cache(num_blocks), cpu_backend())
    return Engine(
        runner,
        KVCacheManager(num_blocks, runner.copy_block),
        Admission(
            EngineCapacity((num_blocks - 1) * BLOCK_SIZE, model.vocab_size, model.fingerprint),
            lambda request: host,
            no_constraints,
        ),
        EngineSettings(max_num_seqs=16),
    )


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_drafts_change_no_token_and_no_logprob(tmp_path: Path, weights: WeightMode) -> None:
    """Prompts of a few tokens of 300, so that looking things up finds something."""
    if not extension.is_available():
        pytest.skip("the torch oracles sum in another order for other numbers of rows")
    model = load_model(resolve(str(write_tiny_model(tmp_path))), weights=weights)
    requests = random_requests(40, 12, seed=6, max_tokens=30)

    def seen(engine: Engine, drafter: Any) -> dict[tuple[str, int], Any]:
        named = [
            replace(each, decoding=resolve_decoding({"drafter": drafter})) for each in requests
        ]
        return {
            name: (answer.tokens, [e for d in answer.deltas for e in d.logprobs or ()])
            for name, answer in run(engine, named).items()
        }

    want = seen(engine_of(model), "off")
    for drafter in DRAFTERS:
        engine = engine_of(model)
        assert seen(engine, {**drafter, "always": True, "max_draft": 12}) == want, drafter
        assert engine.stats().counters.speculation.accepted_tokens[drafter["name"]] > 0, drafter
