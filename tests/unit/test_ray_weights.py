"""A model's files on a machine that shares no folder with the front end: what a host is given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from plait.server.pool.ray import host as host_module
from plait.server.pool.ray import weights as module
from plait.server.pool.ray.host import WorkerHost
from plait.server.pool.ray.launcher import describe_place
from plait.server.pool.ray.weights import Manifest, WeightsFolder, list_models, read_chunks
from plait.server.settings import EngineSettings

FILES = {
    "model.safetensors": bytes(range(256)) * 3,
    "tokenizer/vocab.json": b"{}",
    "empty.txt": b"",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], WorkerHost]:
    """Makes hosts of one machine, whose folder for temporary files is its own."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    monkeypatch.setattr(host_module, "die_with_parent", lambda: None)
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    return WorkerHost


async def copy(host: WorkerHost, manifest: Manifest) -> list[str]:
    """Do what the launcher does; return the names of the files that were copied."""
    names = await host.missing_weights(msgspec.json.encode(manifest))
    for name in names:
        for chunk, is_last in read_chunks(manifest, name):
            await host.add_weights(manifest.model, name, chunk, is_last)
    return names


def placed(manifest: Manifest, engine: EngineSettings) -> Path:
    return Path(WeightsFolder(manifest).in_place(engine).model)


async def test_a_folder_arrives_whole_and_is_found_again(
    model: Path, host: Callable[[], WorkerHost]
) -> None:
    engine = EngineSettings(str(model))
    (manifest,) = list_models(engine)
    assert sorted(await copy(host(), manifest)) == sorted(FILES)
    there = placed(manifest, engine)
    assert there != model
    assert {name: (there / name).read_bytes() for name in FILES} == FILES
    assert len([each for each in there.rglob("*") if each.is_file()]) == len(FILES)
    assert await copy(host(), manifest) == []


async def test_one_file_and_a_draft_model_are_models_of_their_own(
    model: Path, host: Callable[[], WorkerHost], tmp_path: Path
) -> None:
    file = tmp_path / "here" / "draft.gguf"
    file.write_bytes(b"GGUF" * 70)
    engine = EngineSettings(str(file), draft_model=str(model))
    manifests = list_models(engine)
    assert [len(each.files) for each in manifests] == [1, len(FILES)]
    receiving = host()
    for manifest in manifests:
        await copy(receiving, manifest)
        engine = WeightsFolder(manifest).in_place(engine)
    assert Path(engine.model).read_bytes() == file.read_bytes()
    assert (Path(engine.draft_model) / "model.safetensors").is_file()


async def test_a_file_that_was_cut_off_is_copied_again(
    model: Path, host: Callable[[], WorkerHost]
) -> None:
    engine = EngineSettings(str(model))
    (manifest,) = list_models(engine)
    name = "model.safetensors"
    broken = host()
    await broken.missing_weights(msgspec.json.encode(manifest))
    await broken.add_weights(manifest.model, name, b"half of it", False)
    assert name in await copy(host(), manifest)
    assert (placed(manifest, engine) / name).read_bytes() == FILES[name]


async def test_changed_weights_are_another_copy(
    model: Path, host: Callable[[], WorkerHost]
) -> None:
    engine = EngineSettings(str(model))
    (before,) = list_models(engine)
    await copy(host(), before)
    (model / "model.safetensors").write_bytes(b"other")
    (after,) = list_models(engine)
    assert await copy(host(), after)
    assert (placed(after, engine) / "model.safetensors").read_bytes() == b"other"
    assert (placed(before, engine) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


async def test_files_that_were_not_listed_are_refused(
    model: Path, host: Callable[[], WorkerHost]
) -> None:
    (manifest,) = list_models(EngineSettings(str(model)))
    receiving = host()
    await receiving.missing_weights(msgspec.json.encode(manifest))
    with pytest.raises(ValueError, match="none of the model's files"):
        await receiving.add_weights(manifest.model, "other.bin", b"x", True)


def test_built_in_models_are_everywhere() -> None:
    assert list_models(EngineSettings("smollm2-135m-instruct", draft_model="self:0-9")) == []


def test_a_place_is_described_by_all_that_it_takes() -> None:
    engine = EngineSettings(
        ray_cpus=2.0, ray_gpus=0.5, ray_resources={"slot": 1.0}, ray_labels={"zone": "b"}
    )
    assert describe_place(engine) == "2 CPU, 0.5 GPU, 1 slot, zone=b"
