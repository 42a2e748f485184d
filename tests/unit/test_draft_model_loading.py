"""Which model drafts for another one: read, checked by its vocabulary, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.decoders.contract.registry import MethodError, check_needs, choose
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.engine.draft_model.load import load_draft_model, parse_layers
from plait.server.models.catalog import BadModel, resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.draft_models import model_logits
from tests.fixtures.engines import run
from tests.fixtures.tiny_models import write_tiny_model

TEXT = [5, 17, 200, 33, 8, 120, 64]
DRAFTED = resolve_decoding(
    {"drafter": {"name": "draft-model", "always": True, "min_survival": 0.0}}
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "target", num_hidden_layers=4)


def settings(target: Path, draft: str, **fields: Any) -> EngineSettings:
    return EngineSettings(
        model=str(target), weights="fp32", draft_model=draft, kv_cache_bytes=2**22, **fields
    )


def refusal(target: Path, draft: str, **fields: Any) -> str:
    with pytest.raises(BadModel) as caught:
        build_engine(settings(target, draft, **fields))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "want"),
    [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("0-1, 3", (0, 1, 3)), ("1,2-2", (1, 2))],
)
def test_layers_are_read(text: str, want: tuple[int, ...]) -> None:
    assert parse_layers(text, 4) == want


@pytest.mark.parametrize("text", ["", "a", "4", "0-4", "2,1", "1,1", "3-2", "0,-1", "0-999999999"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(BadModel, match="layers"):
        parse_layers(text, 4)


def test_a_model_of_some_layers_is_the_one_that_has_no_others(target: Path, tmp_path: Path) -> None:
    whole = load_model(resolve(str(target)), weights="fp32")
    other = load_model(resolve(str(write_tiny_model(tmp_path / "o"))), weights="fp32")
    kept = whole.with_layers((0, 1, 2, 3))
    assert torch.equal(model_logits(kept, TEXT), model_logits(whole, TEXT))
    have = whole.with_layers((1, 3))
    assert have.kv_block_bytes * 2 == whole.kv_block_bytes
    assert not torch.allclose(model_logits(have, TEXT), model_logits(whole, TEXT))
    want = Transformer(
        other.spec,
        _weights_of(whole, (1, 3)),
        whole.backend,
        mode="fp32",
        fingerprint="",
    )
    assert torch.equal(model_logits(have, TEXT), model_logits(want, TEXT))


def _weights_of(model: Transformer, layers: tuple[int, ...]) -> Any:
    weights = model._weights
    return type(weights)(
        weights.embedding,
        [weights.layers[i] for i in layers],
        weights.final_norm,
        weights.lm_head,
        weights.cos,
        weights.sin,
    )


@pytest.mark.parametrize("draft", ["self", "self:0,2-3"])
def test_a_worker_with_a_draft_model_says_so_and_drafts(target: Path, draft: str) -> None:
    requests = [
        GenerateRequest(f"r{i}", TEXT, SamplingParams(seed=i), 12, decoding=DRAFTED)
        for i in range(4)
    ]
    plain, _ = build_engine(settings(target, ""))
    want = run(plain, [GenerateRequest(r.request_id, TEXT, r.sampling, 12) for r in requests])
    engine, info = build_engine(settings(target, draft))
    have = run(engine, requests)
    assert "draft_model" in info.capabilities
    assert {name: a.tokens for name, a in have.items()} == {n: a.tokens for n, a in want.items()}
    counters = engine.stats().counters.speculation
    right = counters.accepted_tokens["draft-model"], counters.draft_tokens["draft-model"]
    assert (right[0] == right[1]) == (draft == "self")


def test_quantised_weights_draft_for_exact_ones(target: Path) -> None:
    files = resolve(str(target))
    whole = load_model(files, weights="fp32")
    drafter = load_draft_model(settings(target, "self", draft_weights="int8"), whole, files)
    assert drafter is not None
    assert isinstance(drafter.model, Transformer)
    assert (drafter.model.mode, whole.mode) == ("int8", "fp32")


def test_drafters_that_need_one_are_refused_by_name_elsewhere(target: Path) -> None:
    _, info = build_engine(settings(target, ""))
    for name in ("draft-model", "pearl", "superposed", "superposed-tree"):
        choice = choose({"drafter": name}, "drafter")
        assert choice is not None
        with pytest.raises(MethodError, match=f"{name} needs a second model, .* --draft-model"):
            check_needs(choice, info.capabilities)


def test_what_cannot_draft_is_refused(target: Path, tmp_path: Path) -> None:
    assert "no model 'nonesuch'" in refusal(target, "nonesuch")
    assert "diffusion" in refusal(target, "tiny-diffusion")
    assert "no draft model" in refusal(target, "", draft_weights="int4")
    assert "draft_kv_cache_bytes 10" in refusal(target, "self", draft_kv_cache_bytes=10)
    other = write_tiny_model(tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    vocab = text["model"]["vocab"]
    vocab["ra"], vocab["ri"] = vocab["ri"], vocab["ra"]
    (other / "tokenizer.json").write_text(json.dumps(text))
    message = refusal(target, str(other))
    assert "another vocabulary" in message
    assert "b'ri'" in message


def test_a_diffusion_model_takes_no_draft_model() -> None:
    with pytest.raises(BadModel, match="canvases"):
        build_engine(EngineSettings(model="tiny-diffusion", draft_model="self"))
