"""What a folder's files say of a diffusion model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.models.catalog import BadModel, resolve
from plait.server.models.hf.config import read_config, spec_from_config
from plait.server.models.hf.diffusion import read_diffusion
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from tests.fixtures.diffusion_layouts import tiny_config
from tests.fixtures.tiny_models import CONFIG, write_tiny_model

Tensors = dict[str, torch.Tensor]

# Keys that the released models have; the rest of their configs doesn't matter here.
LLADA: dict[str, Any] = {"model_type": "llada", "architectures": ["LLaDAModelLM"]}
DREAM: dict[str, Any] = {"model_type": "Dream", "architectures": ["DreamModel"]}
SDAR: dict[str, Any] = {"model_type": "sdar", "architectures": ["SDARForCausalLM"]}
FAST: dict[str, Any] = {"model_type": "Fast_dLLM_Qwen", "bd_size": 32}
LLADA2: dict[str, Any] = {"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}
A2D: dict[str, Any] = {"model_type": "a2d-qwen3", "mask_token_id": 151665}
TINY = SDAR | {"block_sizes": [1, 8, 16, 32], "also_full": True, "canvas": 96, "block_size": 32}


def full(mask_id: int, **rest: Any) -> DiffusionSpec:
    return DiffusionSpec(mask_id, (2,), "full", 32, **rest)


def block(mask_id: int, size: int, **rest: Any) -> DiffusionSpec:
    return DiffusionSpec(mask_id, (2,), "block", size, **rest)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (LLADA | {"mask_token_id": 126336}, full(126336)),
        (LLADA, full(126336)),
        (LLADA | {"mask_token_id": 5}, full(5)),
        (DREAM | {"mask_token_id": 151666}, full(151666, shift=True)),
        (DREAM, full(151666, shift=True)),
        (
            DREAM | {"architectures": ["DreamForCausalLM"], "block_size": 32},
            block(151669, 32),
        ),
        (SDAR | {"block_size": 4, "mask_token_id": 151669}, block(151669, 4)),
        (SDAR, block(151669, 4)),
        (SDAR | {"block_size": 64}, block(151669, 64)),
        (LLADA2, block(156895, 32)),
        (FAST, block(151665, 32, shift=True)),
        (A2D, full(151665)),
        (A2D | {"block_size": 32}, block(151665, 32)),
        (A2D | {"right_shift_logits": True}, full(151665, shift=True)),
        (A2D | {"model_type": "a2d-qwen2"}, full(151665)),
        (A2D | {"model_type": "a2d-llama"}, full(151665)),
        (
            TINY | {"mask_token_id": 1},
            block(1, 32, block_sizes=(1, 8, 16, 32), also_full=True, canvas=96),
        ),
    ],
)
def test_families(tmp_path: Path, config: dict[str, Any], want: DiffusionSpec) -> None:
    given = {"eos_token_id": 2, "vocab_size": 160000, **config}
    assert read_diffusion(tmp_path, given) == want


def test_other_models_write_token_after_token(tmp_path: Path) -> None:
    assert read_diffusion(tmp_path, {"model_type": "qwen3", "vocab_size": 9}) is None


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def test_the_tokenizer_knows_its_mask_token(tmp_path: Path) -> None:
    config = {"model_type": "a2d-qwen3", "vocab_size": 20}
    added = [{"id": 11, "content": "<|mask|>"}, {"id": 12, "content": "<|im_end|>"}]
    _write(tmp_path, "tokenizer.json", {"added_tokens": added})
    with pytest.raises(BadModel, match="neither mask_token_id nor the tokenizer's mask_token"):
        read_diffusion(tmp_path, config)
    for named in ("<|mask|>", {"content": "<|mask|>", "lstrip": False}):
        _write(tmp_path, "tokenizer_config.json", {"mask_token": named})
        spec = read_diffusion(tmp_path, config)
        assert spec is not None
        assert spec.mask_id == 11


def test_ends_of_an_answer(tmp_path: Path) -> None:
    config = {**DREAM, "vocab_size": 20, "mask_token_id": 1, "eos_token_id": 3}

    def ends() -> tuple[int, ...]:
        spec = read_diffusion(tmp_path, config)
        assert spec is not None
        return spec.eos_ids

    assert ends() == (3,)
    _write(tmp_path, "generation_config.json", {"eos_token_id": [4, 2]})
    assert ends() == (2, 4)
    _write(tmp_path, "tokenizer.json", {"added_tokens": [{"id": 9, "content": "<|im_end|>"}]})
    assert ends() == (2, 4, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "sdar", "mask_token_id": 300}, "the mask token 300 is not one of the"),
        ({"model_type": "Dream", "mask_token_id": None}, "the mask token 151666"),
        ({"model_type": "a2d-qwen2", "mask_token_id": None}, "neither mask_token_id"),
        ({"model_type": "sdar", "noise": "uniform"}, "noise 'uniform' is not supported"),
        ({"model_type": "sdar", "block_sizes": [0, 4]}, "must be positive"),
        ({"model_type": "sdar", "canvas": -1}, "must be positive"),
        ({"model_type": "sdar_moe"}, "model_type 'sdar_moe' is not supported"),
        ({"model_type": "llada", "block_type": "sequential"}, "block_type 'sequential'"),
        ({"model_type": "llada", "rope": False}, "rope False is not supported"),
        ({"model_type": "llada", "alibi": True}, "alibi = True is not understood for llada"),
        ({"model_type": "llada", "include_bias": True}, "include_bias = True"),
        ({"model_type": "llada", "scale_logits": True}, "scale_logits = True"),
        ({"model_type": "llada", "d_model": None}, "d_model must be a whole number"),
        ({"model_type": "llada", "activation_type": "gelu"}, "activation_type 'gelu'"),
        ({"model_type": "llada2_moe", "score_function": "softmax"}, "score_function 'softmax'"),
        ({"model_type": "llada2_moe", "num_experts": 10}, "10 experts do not make 4 equal groups"),
        ({"model_type": "llada2_moe", "num_experts_per_tok": 7}, "cannot choose 7 of 6"),
        ({"model_type": "llada2_moe", "num_shared_experts": 0}, "without a shared one"),
        ({"model_type": "Dream", "use_mrope": True}, "use_mrope = True"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = tiny_config(CONFIG, changes["model_type"])
    _write(tmp_path, "config.json", {**config, **changes})
    with pytest.raises(BadModel, match=message):
        read_config(tmp_path)


def test_llada_counts_rows_of_the_embedding() -> None:
    config = {
        **{"model_type": "llada", "d_model": 64, "n_layers": 2, "n_heads": 4},
        **{"mlp_hidden_size": 96, "vocab_size": 290, "embedding_size": 300},
    }
    spec = spec_from_config(config)
    assert (spec.vocab, spec.kv_heads, spec.rope.theta, spec.norm_eps) == (300, 4, 5e5, 1e-5)
    assert not spec.tied_embeddings
    assert spec_from_config({**config, "embedding_size": None}).vocab == 290
    assert spec_from_config({**config, "include_qkv_bias": True}).qkv_bias


def load(folder: Path) -> Transformer:
    return load_model(resolve(str(folder)), weights="fp32")


@pytest.mark.parametrize("reference", [False, True])
def test_the_mask_token_is_never_an_answer(tmp_path: Path, reference: bool) -> None:
    folder = write_tiny_model(tmp_path, model_type="Dream", mask_token_id=7)
    model = load_model(resolve(str(folder)), reference=reference)
    logits = model.logits(torch.randn(3, 64))
    assert torch.isneginf(logits).nonzero().tolist() == [[0, 7], [1, 7], [2, 7]]


def _drop(name: str) -> Callable[[Tensors], None]:
    def spoil(tensors: Tensors) -> None:
        del tensors[name]

    return spoil


def _resize(name: str, *shape: int) -> Callable[[Tensors], None]:
    def spoil(tensors: Tensors) -> None:
        tensors[name] = torch.ones(shape)

    return spoil


_BLOCK = "model.transformer.blocks.1."
_FUSED = "model.layers.0.attention.query_key_value.weight"
_MLP = "model.layers.2.mlp."


@pytest.mark.parametrize(
    ("family", "spoil", "message"),
    [
        ("llada", _drop(_BLOCK + "attn_out.weight"), r"lacks model\.layers\.1\.self_attn\.o_proj"),
        ("llada", _resize(_BLOCK + "k_norm.weight", 64), r"holds model\.transformer\.blocks\.1\.k"),
        ("llada", _resize(_BLOCK + "ff_proj.weight", 9, 64), r"gate_proj\.weight is \(9, 64\)"),
        ("llada2_moe", _drop(_FUSED), r"lacks model\.layers\.0\.self_attn\.k_proj\.weight"),
        ("llada2_moe", _resize(_FUSED, 127, 64), r"v_proj\.weight is \(31, 64\), not \(32, 64\)"),
        ("llada2_moe", _resize(_FUSED, 129, 64), r"v_proj\.weight is \(33, 64\), not \(32, 64\)"),
        ("llada2_moe", _drop(_MLP + "gate.expert_bias"), r"lacks .*\.mlp\.gate\.expert_bias"),
        ("llada2_moe", _drop(_MLP + "experts.11.up_proj.weight"), r"lacks .*experts\.11\.up_proj"),
        ("llada2_moe", _resize(_MLP + "experts.12.up_proj.weight", 24, 64), "holds .*experts.12"),
        ("Dream", _drop("model.layers.0.self_attn.q_proj.bias"), r"lacks .*q_proj\.bias"),
        ("sdar", _drop("model.layers.0.self_attn.q_norm.weight"), r"lacks .*q_norm\.weight"),
        ("a2d-qwen2", _resize("lm_head.weight", 300, 64), r"lm_head\.weight is not model\.embed"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    tmp_path: Path, family: str, spoil: Callable[[Tensors], None], message: str
) -> None:
    path = write_tiny_model(tmp_path, model_type=family) / "model.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    with pytest.raises(BadModel, match=message):
        load(tmp_path)


def test_routers_stay_exact_in_every_mode(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, model_type="llada2_moe")
    model = load_model(resolve(str(folder)), weights="int8")
    experts = model._weights.layers[1].experts
    assert model._weights.layers[0].experts is None
    assert experts is not None
    assert (experts.router.mode, experts.gate[3].mode, len(experts.down)) == ("fp32", "int8", 12)
