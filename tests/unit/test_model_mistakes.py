"""What operators give `plait serve` by mistake: one line that names the file, and exit code 2."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from plait.server import cli, serve
from plait.server.models.catalog import BadModel
from plait.server.models.inspect import check_device
from plait.server.models.load import load_model
from plait.server.pool import pool
from tests.fixtures.whole_models import write_whole_folder, write_whole_gguf

Spoil = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "configure_logging", lambda settings: None)
    fail = "a worker would have been started"
    monkeypatch.setattr(pool, "open_run_folder", lambda: pytest.fail(fail))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that `plait serve` writes; no worker is started for it."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--port", "0", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("plait: ")
    return err.removeprefix("plait: ")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def config(**changes: Any) -> Spoil:
    return lambda folder: edit(folder / "config.json", **changes)


def text(name: str, content: str | bytes) -> Spoil:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "m.gguf").write_bytes(b"GGUF")


def fp8(folder: Path) -> None:
    """Say in the header that a tensor's bytes are of another type."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    entry = header["model.norm.weight"]
    entry["shape"], entry["dtype"] = [entry["shape"][0] * 4], "F8_E4M3"
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])


FOLDERS: dict[str, tuple[Spoil, list[str]]] = {
    "adapter beside a model": (
        text("adapter_config.json", "{}"),
        ["adapter_config.json: adapters (LoRA) are not applied; merge", "vLLM"],
    ),
    "adapter alone": (adapter_alone, ["adapter_config.json: adapters (LoRA) are not applied"]),
    "gptq": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ["config.json: quantization_config: the weights are quantised (gptq)", "GGUF", "vLLM"],
    ),
    "compressed": (config(compression_config={"a": 1}), ["config.json: compression_config"]),
    "fp8": (fp8, ["model.norm.weight is stored as F8_E4M3", "vLLM or transformers"]),
    "unknown family": (
        config(model_type="gemma3"),
        ["config.json: model_type 'gemma3' is not supported; supported are llama,", "vLLM"],
    ),
    "no family": (config(model_type=["llama"]), ["config.json is damaged, or holds a value of"]),
    "unknown key": (config(sandwich=3), ["config.json: sandwich = 3 is not understood", "vLLM"]),
    "1e400": (
        text("config.json", '{"rope_theta": 1e400}'),
        ["config.json is not JSON: the number 1e400 is out of range"],
    ),
    "NaN": (text("config.json", '{"rms_norm_eps": NaN}'), ["config.json is not JSON: NaN"]),
    "long number": (
        text("config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
        ["config.json is not JSON: "],
    ),
    "nesting bomb": (
        text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
        ["config.json is nested too deeply"],
    ),
    "broken JSON": (text("config.json", '{"a": '), ["config.json is not JSON: "]),
    "a list": (text("config.json", "[]"), ["config.json is not a JSON object"]),
    "no text": (text("config.json", b"\xff\xfe{}"), ["config.json is not JSON: "]),
    "many layers": (config(num_hidden_layers=10**9), ["config.json: more than 4096 layers"]),
    "large rows": (config(vocab_size=10**9), ["config.json: vocab is 1000000000; more than"]),
    "long context": (
        config(max_position_embeddings=10**12),
        ["config.json: max_positions is 1000000000000; more than 16777216"],
    ),
    "text for a number": (config(rms_norm_eps="small"), ["config.json is damaged, or holds a"]),
    "theta 0": (config(rope_theta=-1.0), ["config.json: rope: theta must be a positive number"]),
    "rope list": (config(rope_scaling=[1]), ["config.json is damaged, or holds a value"]),
    "no config": (remove("config.json"), ["holds no config.json"]),
    "a folder of GGUF files": (only_gguf, ["for a GGUF file give the file: ", "m.gguf"]),
    "no weights": (remove("model.safetensors"), ["lacks model.safetensors"]),
    "pickled weights": (pickled, ["lacks model.safetensors", "save_pretrained"]),
    "empty weights": (text("model.safetensors", ""), ["model.safetensors is damaged or not whole"]),
    "index of a list": (
        text("model.safetensors.index.json", '{"weight_map": []}'),
        ["model.safetensors.index.json is damaged"],
    ),
    "missing shard": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
        ["lacks model-2.safetensors"],
    ),
    "wrong size": (config(intermediate_size=64), ["mlp.gate_proj.weight is (96, 64), not (64"]),
    "no tokenizer": (remove("tokenizer.json"), ["tokenizer.json is missing"]),
    "broken tokenizer": (text("tokenizer.json", "{}"), ["tokenizer.json is not a tokenizer"]),
    "odd token": (
        lambda folder: edit(folder / "tokenizer_config.json", eos_token=[1]),
        ["tokenizer_config.json is damaged, or holds a value of the wrong type"],
    ),
    "odd end": (
        text("generation_config.json", '{"eos_token_id": "</s>"}'),
        ["eos_token_id '</s>' is no token id"],
    ),
    "template does not parse": (
        text("chat_template.jinja", "{% for m in messages %}\n{{ m.content }"),
        ["chat_template.jinja: the chat template does not parse: line 2: ", "/v1/completions"],
    ),
    "template in the tokenizer's settings": (
        lambda folder: edit(folder / "tokenizer_config.json", chat_template="{% endif %}"),
        ["tokenizer_config.json: the chat template does not parse: line 1: "],
    ),
    "template with an unknown tag": (
        text("chat_template.jinja", "{% call_tool x %}"),
        ["chat_template.jinja: the chat template does not parse: line 1: ", "call_tool"],
    ),
    "template is not UTF-8": (
        text("chat_template.jinja", b"\xe9"),
        ["chat_template.jinja can't be read as UTF-8 text"],
    ),
    "template is no text": (
        lambda folder: edit(folder / "tokenizer_config.json", chat_template={"a": 1}),
        ["tokenizer_config.json: chat_template is"],
    ),
    "nested template": (
        text("chat_template.jinja", "{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}"),
        ["chat_template.jinja: the chat template does not parse: "],
    ),
}


@pytest.mark.parametrize(("spoil", "want"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_that_cannot_be_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, spoil: Spoil, want: list[str]
) -> None:
    folder = write_whole_folder(tmp_path / "model").path
    spoil(folder)
    have = complaint(capsys, str(folder))
    assert str(folder) in have
    for part in want:
        assert part in have


GGUF_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "another pre-tokenizer": ({"tokenizer__ggml__pre": "viking"}, "llama.cpp may serve it"),
    "experts": ({"llama__expert_count": 8}, "llama.expert_count = 8 is not understood"),
    "a shard": ({"split__count": 3}, "merge them with llama-gguf-split"),
    "an adapter": ({"general__type": "adapter"}, "general.type is 'adapter'"),
    "many layers": ({"llama__block_count": 2**31}, "more than 4096 is not supported"),
    "long context": ({"llama__context_length": 2**31 - 1}, "max_positions is 2147483647"),
    "infinite theta": ({"llama__rope__freq_base": float("inf")}, "rope: theta must be a positive"),
    "NaN norm": ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "norm_eps must be"),
    "broken template": ({"tokenizer__chat_template": "{{ a"}, "chat template does not parse"),
    "ids outside": ({"tokenizer__ggml__eos_token_id": 10**6}, "eos_token_id is 1000000"),
    "texts as numbers": ({"tokenizer__ggml__merges": [1, 2]}, "merges is no list of texts"),
    "tokens as a number": ({"tokenizer__ggml__tokens": 7}, "tokens is no list of texts"),
}


@pytest.mark.parametrize(("keys", "want"), GGUF_FILES.values(), ids=GGUF_FILES.keys())
def test_a_gguf_file_that_cannot_be_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, keys: dict[str, Any], want: str
) -> None:
    path = write_whole_gguf(tmp_path / "m.gguf", **keys).path
    have = complaint(capsys, str(path))
    assert str(path) in have
    assert want in have


def test_what_is_no_model_at_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nothing is downloaded: `hf download`" in complaint(capsys, "meta-llama/Llama-3.2-1B")
    assert "give a built-in name (smollm2-135m-instruct" in complaint(capsys, "smollm2")
    (tmp_path / "m.safetensors").write_bytes(b"x")
    assert "give the folder around it" in complaint(capsys, str(tmp_path / "m.safetensors"))
    (tmp_path / "empty.gguf").touch()
    assert "is not a GGUF file" in complaint(capsys, str(tmp_path / "empty.gguf"))


def test_more_positions_than_the_model_has(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(write_whole_folder(tmp_path / "model", max_position_embeddings=256).path)
    have = complaint(capsys, folder, "--max-model-len", "257")
    assert "max_model_len 257 is more than the 256 positions that model was made for" in have


@pytest.mark.parametrize("option", ["--kv-cache-bytes", "--draft-kv-cache-bytes"])
def test_a_cache_larger_than_the_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    folder = str(write_whole_folder(tmp_path / "model").path)
    have = complaint(capsys, folder, "--draft-model", "self", option, "900TiB")
    assert have.startswith(f"{option[2:].replace('-', '_')} 900.0TiB is more than the memory there")


def test_a_draft_model_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(write_whole_folder(tmp_path / "model").path)
    assert "no model 'nowhere'" in complaint(capsys, folder, "--draft-model", "nowhere")


def test_a_gpu_is_refused_where_torch_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.server.models.inspect.version", lambda name: "2.13.0+cpu")
    with pytest.raises(BadModel, match=r"device cuda:1: the installed torch 2.13.0\+cpu is built"):
        check_device("cuda:1")
    check_device("cpu")
    monkeypatch.setattr("plait.server.models.inspect.version", lambda name: "2.13.0+cu130")
    check_device("cuda")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_when_loaded(tmp_path: Path, value: float) -> None:
    files = write_whole_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.up_proj\.weight holds numbers") as told:
        load_model(files, reference=True)
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q8_0, Type.Q6_K, Type.F16])
def test_a_scale_that_is_no_number_is_refused_when_loaded(tmp_path: Path, kind: Type) -> None:
    files = write_whole_gguf(tmp_path / "m.gguf", Type.Q8_0 if kind is Type.Q6_K else kind)
    data = bytearray(files.path.read_bytes())
    at = len(data) - {Type.Q4_0: 18, Type.Q4_1: 20, Type.Q5_0: 22}.get(kind, 34)
    data[at : at + 2] = np.float16("nan").tobytes()
    files.path.write_bytes(data)
    with pytest.raises(BadModel, match="NaN or infinite"):
        load_model(files, reference=True)


def test_nothing_is_loaded_to_find_out(tmp_path: Path) -> None:
    folder = write_whole_folder(tmp_path / "model", model_type="llama").path
    edit(folder / "config.json", model_type="mamba")
    program = (
        "import sys, time\n"
        "from plait.server import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, time.process_time())\n"
    )
    command = [sys.executable, "-P", "-c", program, "serve", str(folder), "--port", "0"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    code, has_torch, seconds = done.stdout.split()
    assert (code, has_torch) == ("2", "False"), done.stderr
    assert "model_type 'mamba' is not supported" in done.stderr
    assert "Traceback" not in done.stderr
    assert float(seconds) < 5 and time.monotonic() > began
