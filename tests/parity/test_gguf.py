"""GGUF and safetensors loads of the same weights agree, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plait.kernels.linear import dequantize
from plait.server.models.catalog import resolve
from plait.server.models.hf.config import spec_from_config
from plait.server.models.load import load_model
from plait.server.models.rope import frequencies
from plait.server.models.spec import ModelSpec, RopeSpec
from plait.server.models.transformer import Transformer
from tests.fixtures.tiny_models import CONFIG, random_weights, write_tiny_model
from tests.parity.feeding import logits_of
from tests.parity.tiny_gguf import Type, round_trip, write_gguf

pytestmark = pytest.mark.parity

TOKENS = [(7 * i * i + 3) % 300 for i in range(60)]
KINDS = {kind.name: kind for kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0)}
KINDS |= {kind.name: kind for kind in (Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K)}
# What auto makes of a file of this type, and the largest error relative to the largest weight.
AUTO = {
    "F32": ("bf16", 2**-8),
    "F16": ("bf16", 2**-8),
    "BF16": ("bf16", 0.0),
    "Q8_0": ("int8", 0.0),
    "Q5_0": ("int8", 0.0),
    "Q5_1": ("int8", 0.004),
    "Q4_0": ("int4", 0.0),
    "Q4_1": ("int4", 0.0),
    "Q4_K": ("int4wide", 0.0),
}
# Blocks of Q4_K are 256 long.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


def spec_of(**config: Any) -> ModelSpec:
    return spec_from_config({**CONFIG, **config})


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_equals_safetensors(tmp_path: Path, kind: str) -> None:
    spec = spec_of(**WIDE)
    weights = random_weights(spec, seed=1)
    write_gguf(tmp_path / "tiny.gguf", spec, weights, KINDS[kind])
    folder = write_tiny_model(tmp_path / "hf", **WIDE)
    save_file(round_trip(weights, KINDS[kind]), folder / "model.safetensors")
    have = logits_of(_load(tmp_path / "tiny.gguf", "fp32"), TOKENS)
    want = logits_of(_load(folder, "fp32"), TOKENS)
    assert torch.equal(have, want)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_int4fixed_rounds_scales_alone(tmp_path: Path, kind: str) -> None:
    """Within 9 steps of 2^-14 of the column's greatest weight; int4 keeps all values."""
    spec = spec_of(**WIDE)
    weights = random_weights(spec, seed=1)
    write_gguf(tmp_path / "tiny.gguf", spec, weights, KINDS[kind])
    want = round_trip(weights, KINDS[kind])["model.layers.1.mlp.down_proj.weight"]
    error: dict[str, float] = {}
    for mode in ("int4fixed", "int4"):
        down = _load(tmp_path / "tiny.gguf", mode)._weights.layers[1].down
        error[down.mode] = float((dequantize(down) - want).abs().max() / want.abs().max())
    assert 0 < error["int4fixed"] < 1e-3
    assert error[AUTO[kind][0]] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_auto_keeps_the_precision_of_the_file(tmp_path: Path, kind: str) -> None:
    spec = spec_of(**WIDE)
    weights = random_weights(spec, seed=1)
    write_gguf(tmp_path / "tiny.gguf", spec, weights, KINDS[kind])
    model = _load(tmp_path / "tiny.gguf", "auto")
    mode, bound = AUTO[kind]
    assert model.mode == mode
    want = round_trip(weights, KINDS[kind])["model.layers.1.mlp.down_proj.weight"]
    have = model._weights.layers[1].down
    assert have.mode == mode
    assert float((dequantize(have) - want).abs().max() / want.abs().max()) <= bound


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2"},
        {"model_type": "qwen3"},
        {"model_type": "smollm3", "num_hidden_layers": 5},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
    ],
    ids=["qwen2", "qwen3", "smollm3", "biases", "untied", "multi-head"],
)
def test_families_agree(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_tiny_model(tmp_path / "hf", seed=2, **config)
    spec = spec_of(**config)
    write_gguf(tmp_path / "tiny.gguf", spec, random_weights(spec, seed=2), Type.F32)
    have = logits_of(_load(tmp_path / "tiny.gguf", "fp32"), TOKENS)
    assert torch.equal(have, logits_of(_load(folder, "fp32"), TOKENS))


ROPE_KEYS = {
    "linear": {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
    "yarn": {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 128,
    },
}


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_stretched_contexts_agree(tmp_path: Path, kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 128}
    if kind == "linear":
        del scaling["original_max_position_embeddings"]
    folder = write_tiny_model(tmp_path / "hf", seed=3, rope_scaling=scaling)
    spec = spec_of(rope_scaling=scaling)
    keys = ROPE_KEYS.get(kind) or {"rope_freqs.weight": _llama3_factors(spec.rope)}
    write_gguf(tmp_path / "tiny.gguf", spec, random_weights(spec, seed=3), Type.F32, **keys)
    have = logits_of(_load(tmp_path / "tiny.gguf", "fp32"), TOKENS)
    torch.testing.assert_close(have, logits_of(_load(folder, "fp32"), TOKENS))


def _llama3_factors(rope: RopeSpec) -> torch.Tensor:
    return (frequencies(RopeSpec(rope.theta, rope.dim)) / frequencies(rope)).float()


def _load(path: Path, weights: Any) -> Transformer:
    return load_model(resolve(str(path)), weights=weights)
