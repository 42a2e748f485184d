"""Files of a model with bytes cut, flipped and exchanged: each loads, or is refused by its name."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.heads import add_inputs, belongs_to, find_heads
from plait.server.models.inspect import inspect, open_tokenizer
from plait.server.models.load import load_model
from tests.fixtures.tiny_models import CHAT_TEMPLATE
from tests.fixtures.whole_models import write_whole_folder, write_whole_gguf

ROUNDS = 20  # of each way to spoil a file
HEADER = 16 * 2**10  # where most of what can go wrong stands
FOLDER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
WHERE_THERE = {  # files that a folder may have, and how often spoiling them must show
    "chat_template.jinja": (CHAT_TEMPLATE.encode(), 5),
    "model.safetensors.index.json": (b'{"weight_map": {"a": "model.safetensors"}}', ROUNDS),
}


def spoiled(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield copies: cut, with bits flipped, bytes replaced, left out or copied, absurd lengths."""
    for _ in range(ROUNDS):
        yield data[: rng.randrange(len(data))]
        yield data[: rng.randrange(min(len(data), HEADER))]
        at = rng.randrange(min(len(data), HEADER))
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        yield data[:at] + rng.randbytes(8) + data[at + 8 :]
        length = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1])
        yield data[:at] + length.to_bytes(8, "little") + data[at + 8 :]
        yield data[:at] + data[at + rng.randrange(1, 16) :]
        first, second = sorted(rng.sample(range(min(len(data), HEADER)), 2))
        yield data[:first] + data[second : second + 8] + data[first + 8 :]


def open_all(files: ModelFiles) -> None:
    """Do what the front end and a worker do with a model's files."""
    inspect(files)
    open_tokenizer(files)
    model = load_model(files, reference=True)
    add_inputs(model, find_heads(files))


def judge(path: Path, model: Path) -> str | None:
    """Return why the model is refused; None: it loads. Anything but a BadModel is a fault."""
    try:
        open_all(resolve(str(model)))
    except BadModel as error:
        message = str(error)
        assert str(model) in message, message
        assert "\n" not in message, message
        assert len(message) < 1000, message
        return message
    return None


@pytest.mark.parametrize("name", [*FOLDER_FILES, *WHERE_THERE])
def test_a_folder_with_a_spoiled_file(tmp_path: Path, name: str) -> None:
    folder = write_whole_folder(tmp_path / "model").path
    path = folder / name
    if name in WHERE_THERE:
        path.write_bytes(WHERE_THERE[name][0])
    whole = path.read_bytes()
    assert judge(path, folder) is None
    told = []
    for data in spoiled(whole, random.Random(name)):
        path.write_bytes(data)
        told.append(judge(path, folder))
    named = [message for message in told if message and name in message]
    # The rest still loads, or another file no longer fits.
    assert len(named) > WHERE_THERE.get(name, (b"", ROUNDS))[1]


def test_a_spoiled_head_beside_a_model(tmp_path: Path) -> None:
    files = write_whole_folder(tmp_path / "model")
    path = files.path / "ppd.safetensors"
    save_file({"embeddings": torch.ones(3, 64)}, path, {"weights": belongs_to(files)})
    whole = path.read_bytes()
    assert judge(path, files.path) is None
    model = load_model(files, reference=True)
    refused = 0
    for data in spoiled(whole, random.Random("ppd")):
        path.write_bytes(data)
        try:
            add_inputs(model, find_heads(files))
        except BadModel as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > ROUNDS


def test_a_spoiled_gguf_file(tmp_path: Path) -> None:
    path = write_whole_gguf(tmp_path / "m.gguf").path
    whole = path.read_bytes()
    assert judge(path, path) is None
    refused = 0
    for data in spoiled(whole, random.Random("gguf")):
        path.write_bytes(data)
        refused += judge(path, path) is not None
    assert refused > 2 * ROUNDS


def test_every_cut_of_a_gguf_header_is_refused(tmp_path: Path) -> None:
    path = write_whole_gguf(tmp_path / "m.gguf").path
    whole = path.read_bytes()
    for size in [*range(0, 400, 7), *range(400, len(whole) - 1, len(whole) // 40)]:
        path.write_bytes(whole[:size])
        assert judge(path, path), size


REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_file_that_is_another_one(tmp_path: Path, name: str) -> None:
    folder = write_whole_folder(tmp_path / "model").path
    for other in FOLDER_FILES:
        if other != name:
            shutil.copyfile(folder / other, tmp_path / "model" / f"{name}.new")
            kept = (folder / name).read_bytes()
            (folder / f"{name}.new").replace(folder / name)
            assert judge(folder / name, folder), other
            (folder / name).write_bytes(kept)
    assert judge(folder / name, folder) is None


def test_random_bytes_behind_the_magic(tmp_path: Path) -> None:
    path, rng = tmp_path / "m.gguf", random.Random(0)
    for size in (0, 1, 4, 20, 100, 5000):
        path.write_bytes(b"GGUF\x03\x00\x00\x00" + rng.randbytes(size))
        assert judge(path, path), size
