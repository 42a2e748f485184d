from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.kernels.linear import dequantize
from plait.server.models.catalog import BadModel, resolve
from plait.server.models.checkpoint import EMBEDDING, QuantizedTensor
from plait.server.models.fingerprint import fingerprint
from plait.server.models.gguf import GgufCheckpoint
from plait.server.models.load import load_model
from plait.server.models.transformer import TiedEmbedding, Transformer
from tests.fixtures.tiny_models import write_tiny_model

Tensors = dict[str, torch.Tensor]


def load(folder: Path, weights: Any = "fp32", **options: Any) -> Transformer:
    return load_model(resolve(str(folder)), weights=weights, **options)


def test_shapes(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path))
    kv = model.new_kv_cache(5)
    assert kv.k.shape == (2, 5, 2, 16, 16)
    assert kv.v.shape == (2, 5, 2, 16, 16)
    assert kv.k.nbytes + kv.v.nbytes == 5 * model.kv_block_bytes
    assert model.vocab_size == 300
    assert model.max_positions == 512


@pytest.mark.parametrize(
    ("weights", "mode", "cache"),
    [
        ("auto", "bf16", torch.bfloat16),
        ("fp32", "fp32", torch.float32),
        ("bf16", "bf16", torch.bfloat16),
        ("int8", "int8", torch.bfloat16),
        ("int4", "int4", torch.bfloat16),
        ("int4fixed", "int4fixed", torch.bfloat16),
    ],
)
def test_modes(tmp_path: Path, weights: Any, mode: str, cache: torch.dtype) -> None:
    model = load(write_tiny_model(tmp_path), weights)
    assert model.mode == mode
    assert model.new_kv_cache(1).k.dtype == cache
    want = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    have = dequantize(model._weights.layers[1].down)
    step = {"fp32": 0.0, "bf16": 2**-8, "int8": 0.005}.get(mode, 0.07)
    assert float((have - want).abs().max() / want.abs().max()) <= step


@pytest.mark.parametrize("weights", ["int4", "int4fixed"])
def test_the_head_of_an_int4_model_is_int8(tmp_path: Path, weights: Any) -> None:
    assert load(write_tiny_model(tmp_path), weights)._weights.lm_head.mode == "int8"


def _embeddings(model: Transformer) -> Tensor:
    return model.embedding[torch.arange(model.vocab_size)].float()


@pytest.mark.parametrize(
    ("weights", "is_held_once"),
    [("auto", True), ("fp32", True), ("bf16", True), ("int8", False), ("int4fixed", False)],
)
def test_tied_embeddings_are_held_once_where_the_head_is_exact(
    tmp_path: Path, weights: Any, is_held_once: bool
) -> None:
    model = load(write_tiny_model(tmp_path, tie_word_embeddings=True), weights)
    stored = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    want = stored.float() if weights == "fp32" else stored.bfloat16()
    assert isinstance(model.embedding, TiedEmbedding) == is_held_once
    for ids in (torch.tensor(some) for some in ([], [0, 299, 31, 299], range(300))):
        assert torch.equal(model._embed(ids.long()), want[ids.long()].float())


def test_embeddings_of_their_own_are_not_the_head(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path, tie_word_embeddings=False))
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(_embeddings(model), tensors["model.embed_tokens.weight"].float())
    assert torch.equal(dequantize(model._weights.lm_head), tensors["lm_head.weight"].float())


@pytest.mark.parametrize("weights", ["auto", "int8", "int4", "int4fixed"])
def test_a_quantised_embedding_is_held_once_and_exact(weights: Any) -> None:
    files = resolve("smollm2-135m-instruct")
    model = load_model(files, weights=weights)
    stored = GgufCheckpoint(files.path).read(EMBEDDING)
    assert isinstance(stored, QuantizedTensor)
    assert isinstance(model.embedding, TiedEmbedding)
    assert torch.equal(_embeddings(model), stored.dense().bfloat16().float())


def test_sharded_weights_are_the_same_model(tmp_path: Path) -> None:
    whole, sharded = write_tiny_model(tmp_path / "whole"), write_tiny_model(tmp_path / "sharded")
    tensors = load_file(whole / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for part in set(weight_map.values()):
        kept = {name: tensors[name] for name, file in weight_map.items() if file == part}
        save_file(kept, sharded / part)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    have, want = load(sharded), load(whole)
    assert torch.equal(_embeddings(have), _embeddings(want))
    down = [dequantize(model._weights.layers[1].down) for model in (have, want)]
    assert torch.equal(*down)
    (sharded / "part-1.safetensors").unlink()
    with pytest.raises(BadModel, match=r"lacks part-1\.safetensors"):
        load(sharded)


def _drop(tensors: Tensors) -> None:
    del tensors["model.layers.0.self_attn.k_proj.weight"]


def _add(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)


def _integer(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)


def _reshape(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = torch.ones(299, 64)


def _narrow(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.ones(16, 64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, r"lacks model\.layers\.0\.self_attn\.k_proj\.weight"),
        (_add, r"holds model\.layers\.0\.self_attn\.q_norm\.weight, unknown to llama"),
        (_integer, r"model\.norm\.weight is stored as I8"),
        (_reshape, r"model\.embed_tokens\.weight is \(299, 64\), not \(300, 64\)"),
        (_narrow, r"model\.layers\.0\.self_attn\.k_proj\.weight is \(16, 64\), not \(32, 64\)"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Tensors], None], message: str
) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    with pytest.raises(BadModel, match=message):
        load(tmp_path)


def test_repeated_embeddings_and_old_frequencies_are_ignored(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path)
    assert load(tmp_path).vocab_size == 300


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadModel, match="damaged"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(BadModel, match=r"lacks model\.safetensors"):
        load(tmp_path)


def test_fingerprints_tell_weights_and_modes_apart(tmp_path: Path) -> None:
    first = resolve(str(write_tiny_model(tmp_path / "a")))
    other = resolve(str(write_tiny_model(tmp_path / "b", seed=1)))
    names = [fingerprint(first, "int8"), fingerprint(first, "int4"), fingerprint(other, "int8")]
    assert len(set(names)) == 3
    assert fingerprint(first, "int8") == names[0]
    assert all(len(name) == 16 for name in names)


def test_a_naive_model_agrees(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    hidden = torch.randn(3, 64)
    have, want = load(folder, reference=True).logits(hidden), load(folder).logits(hidden)
    torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_gpu_agrees(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    hidden = torch.randn(3, 64)
    have = load(folder, device="cuda").logits(hidden.cuda()).cpu()
    torch.testing.assert_close(have, load(folder).logits(hidden), atol=1e-3, rtol=1e-3)
