"""GGUF blocks and headers against the `gguf` package itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from plait.kernels.linear import dequantize, from_dense, from_quantized
from plait.server.models.catalog import BadModel
from plait.server.models.checkpoint import DenseTensor, QuantizedTensor
from plait.server.models.gguf import GgufCheckpoint, spec_from_metadata
from plait.server.models.gguf_blocks import unpack
from plait.server.models.gguf_header import GgufFile, read_gguf
from plait.server.models.spec import ModelSpec

ROWS = 5
GROUPED = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q8_0, Type.Q4_K)
OTHERS = (Type.Q5_1, Type.Q2_K, Type.Q3_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL)


def random_blocks(kind: Type) -> Any:
    """Any bytes are a legal tensor, but for the exponents of its halves: keep those finite."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (ROWS, 512 // values * size), dtype=np.uint8)
    blocks = rows.reshape(ROWS, -1, size)
    halves = {Type.Q6_K: [208], Type.Q3_K: [108], Type.Q2_K: [80, 82]}.get(kind, [0])
    if kind in (Type.Q4_1, Type.Q5_1, Type.Q4_K, Type.Q5_K):
        halves = [0, 2]
    for at in halves:
        blocks[:, :, at + 1] = 0x20 + blocks[:, :, at + 1] % 16
    return rows


@pytest.mark.parametrize("kind", GROUPED)
def test_groups_are_what_gguf_dequantises(kind: Type) -> None:
    rows = random_blocks(kind)
    have = unpack(rows, kind)
    assert isinstance(have, QuantizedTensor)
    want = torch.from_numpy(gguf.quants.dequantize(rows, kind))
    assert torch.equal(have.dense(), want)


@pytest.mark.parametrize("kind", GROUPED)
def test_packed_groups_hold_the_same_values(kind: Type) -> None:
    rows = random_blocks(kind)
    stored = unpack(rows, kind)
    assert isinstance(stored, QuantizedTensor)
    weight = from_quantized(stored.q, stored.scale, stored.minimum)
    assert torch.equal(dequantize(weight), torch.from_numpy(gguf.quants.dequantize(rows, kind)))
    assert (weight.mode == "int4wide") == (kind is Type.Q4_K)


@pytest.mark.parametrize("kind", OTHERS)
def test_types_without_groups_of_their_own_are_held_to_eight_bits(kind: Type) -> None:
    rows = random_blocks(kind)
    want = torch.from_numpy(gguf.quants.dequantize(rows, kind))
    stored = unpack(rows, kind)
    assert isinstance(stored, DenseTensor)
    groups = want.view(ROWS, -1, 32)
    have = dequantize(from_dense(stored.values, stored.keep)).view_as(groups)
    # Half a step of 127 to the greatest, and what rounding the step to 16 bits adds.
    bound = groups.abs().amax(-1, keepdim=True) / 127 * (0.5 + 127 / 2048) + 2**-20
    assert ((have - groups).abs() <= bound).all()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_are_dequantised(kind: Type) -> None:
    rows = random_blocks(kind)
    have = unpack(rows, kind)
    assert isinstance(have, DenseTensor)
    assert torch.equal(have.values, torch.from_numpy(gguf.quants.dequantize(rows, kind)))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16])
def test_plain_numbers_keep_their_type(kind: Type) -> None:
    want = torch.randn(3, 64).to(torch.float16).float().bfloat16().float()
    have = unpack(gguf.quants.quantize(want.numpy(), kind), kind)
    assert isinstance(have, DenseTensor)
    assert have.values.element_size() == (4 if kind is Type.F32 else 2)
    assert torch.equal(have.values.float(), want)


def test_types_without_a_dequantiser_are_refused() -> None:
    with pytest.raises(BadModel, match="Q8_K"):
        unpack(np.zeros((1, 292), dtype=np.uint8), Type.Q8_K)


def write(path: Path, arch: str = "llama", **keys: Any) -> Path:
    """Write a header of one tensor; dots of the keys stand as double underscores."""
    writer = gguf.GGUFWriter(path, arch)
    base = {"block_count": 1, "context_length": 64, "embedding_length": 32}
    base |= {"feed_forward_length": 64, "attention__head_count": 2}
    for key, value in (base | keys).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(f"{arch}.{key.replace('__', '.')}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "日本", "x" * 300])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0, 3.5])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3, 6])
    writer.add_array("tokenizer.ggml.flags", [True, False])
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_fast_reader_reads_what_gguf_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    have, want = read_gguf(path), gguf.GGUFReader(path)
    assert dict(have.metadata) == {key: field.contents() for key, field in want.fields.items()}
    assert have.metadata["tokenizer.ggml.tokens"] == ["a", "", "日本", "x" * 300]
    assert [*have.tensors] == [tensor.name for tensor in want.tensors]
    for tensor in want.tensors:
        assert np.array_equal(have.tensors[tensor.name].data, tensor.data)


@pytest.mark.parametrize("size", [3, 20, 60, 200, 700, 1000])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadModel):
        GgufCheckpoint(path)


@pytest.mark.parametrize(
    ("arch", "keys", "message"),
    [
        ("gpt2", {}, "architecture 'gpt2' is not supported"),
        ("llama", {"expert_count": 8}, "llama.expert_count = 8 is not understood"),
        ("llama", {"rope__dimension_count": 8}, "part of the head"),
        ("llama", {"rope__scaling__type": "longrope"}, "rope.scaling.factor must be a number"),
        ("llama", {"attention__value_length": 8}, "different sizes"),
        ("llama", {"attention__head_count": 0}, "head_count must be a whole number, not 0"),
        ("llama", {"block_count": "one"}, "llama.block_count must be a whole number"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, arch: str, keys: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.gguf", arch, **keys)
    with pytest.raises(BadModel, match=message):
        GgufCheckpoint(path)


YARN: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        ({}, 1.0 + 0.1 * math.log(4.0)),
        ({"rope.scaling.yarn_attn_factor": 0.75}, 0.75),  # all of it, as the original states it
        ({"rope.scaling.attn_factor": 2.0}, 2.0 * (1.0 + 0.1 * math.log(4.0))),
        ({"rope.scaling.yarn_attn_factor": 0.5, "rope.scaling.attn_factor": 3.0}, 1.5),
        ({"rope.scaling.yarn_ext_factor": 1.0}, 1.0 + 0.1 * math.log(4.0)),
    ],
)
def test_yarn_sharpens_attention_as_the_file_says(keys: dict[str, Any], want: float) -> None:
    assert yarn_spec(keys).rope.attention_factor == pytest.approx(want)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor other than 1"),
        ({"rope.scaling.yarn_attn_factor": 0.0}, "attention_factor must be a positive number"),
        ({"rope.scaling.yarn_attn_factor": math.nan}, "attention_factor must be a positive"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier = 0.1 is not understood"),
        ({"rope.scaling.original_context_length": 0}, "must be a whole number, not 0"),
        ({"rope.scaling.factor": 0.0}, "factor must be a positive number"),
        ({"rope.scaling.yarn_beta_slow": -1.0}, "beta_slow must be a positive number"),
        ({"rope.freq_base": 1.0}, "theta must be above 1"),
    ],
)
def test_yarn_that_cannot_be_computed_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        yarn_spec(keys)


def yarn_spec(keys: dict[str, Any]) -> ModelSpec:
    sizes = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = {f"llama.{name}": value for name, value in (sizes | YARN | keys).items()}
    data = np.ones((4, 32), dtype=np.float32)
    shape = np.array([32, 4], dtype=np.uint32)
    tensor = gguf.ReaderTensor("token_embd.weight", Type.F32, shape, 128, 512, 0, data, None)  # type: ignore[arg-type]
    file = GgufFile({"general.architecture": "llama", **metadata}, {tensor.name: tensor})
    return spec_from_metadata(file)
