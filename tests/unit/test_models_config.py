from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.server.models.catalog import BadModel
from plait.server.models.hf.config import read_config, spec_from_config
from plait.server.models.rope import frequencies, tables
from plait.server.models.spec import ModelSpec, RopeSpec

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def spec(**changes: Any) -> ModelSpec:
    return spec_from_config({**CONFIG, **changes})


def test_defaults_are_filled_in() -> None:
    have = spec(head_dim=None, num_key_value_heads=None)
    assert (have.head_dim, have.kv_heads) == (16, 4)
    assert have.rope == RopeSpec(theta=1e4, dim=16)
    assert have.windows == (0, 0, 0, 0)
    assert not have.tied_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"logits_scaling": 8.0}, "logits_scaling = 8.0 is not understood"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not understood for llama"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "'linear' .* beta"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "1 entries for 4 layers"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes: Any, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "x.py"}, "torch_dtype": "bfloat16", "use_cache": True},
        {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {"a": 1}},
        {"eos_token_id": [1, 2], "image_token_id": 7, "_name_or_path": "x", "logit_scale": None},
    ],
)
def test_harmless_keys_are_ignored(changes: Any) -> None:
    assert spec(**changes) == spec()


def test_windows_follow_the_family() -> None:
    assert spec(model_type="mistral", sliding_window=7).windows == (7, 7, 7, 7)
    assert spec(model_type="mistral", sliding_window=None).windows == (0, 0, 0, 0)
    qwen = {"model_type": "qwen2", "sliding_window": 7, "max_window_layers": 3}
    assert spec(**qwen).windows == (0, 0, 0, 0)
    assert spec(**qwen, use_sliding_window=True).windows == (0, 0, 0, 7)
    types = ["sliding_attention", "full_attention"] * 2
    assert spec(**qwen, use_sliding_window=True, layer_types=types).windows == (7, 0, 7, 0)


def test_biases_follow_the_family() -> None:
    have = [
        (s.qkv_bias, s.o_bias, s.mlp_bias)
        for s in (spec(), spec(attention_bias=True), spec(model_type="qwen2"), spec(mlp_bias=True))
    ]
    assert have == [
        (False, False, False),
        (True, True, False),
        (True, False, False),
        (False, False, True),
    ]


def test_smollm3_leaves_positions_out_of_every_fourth_layer() -> None:
    assert spec(model_type="smollm3").rotary == (True, True, True, False)
    assert spec(model_type="smollm3", no_rope_layers=[0, 1, 1, 1]).rotary == (False, *[True] * 3)


def test_yarn_stretches_the_context() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    have = spec(rope_scaling=scaling)
    assert have.max_positions == 256
    assert have.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_damaged_config_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadModel, match=r"config\.json"):
        read_config(tmp_path)


def test_a_value_of_the_wrong_type_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": [1]}))
    with pytest.raises(BadModel, match=r"config\.json"):
        read_config(tmp_path)


def test_rotary_tables_are_exact_at_late_positions() -> None:
    rope = RopeSpec(theta=1e4, dim=8)
    cos, sin = tables(rope, 100_001)
    for pair in range(4):
        angle = 100_000 * 1e4 ** (-2 * pair / 8)
        assert cos[-1, pair].item() == pytest.approx(math.cos(angle), abs=1e-7)
        assert sin[-1, pair].item() == pytest.approx(math.sin(angle), abs=1e-7)


def test_scaled_frequencies_stay_between_plain_and_divided() -> None:
    plain = frequencies(RopeSpec(theta=1e4, dim=64))
    for kind in ("llama3", "yarn"):
        have = frequencies(RopeSpec(1e4, 64, kind, factor=8.0, original_positions=2048))
        assert torch.equal(have[:4], plain[:4])
        torch.testing.assert_close(have[-4:], plain[-4:] / 8)
        assert (have <= plain).all()
        assert (have >= plain / 8 * (1 - 1e-12)).all()
