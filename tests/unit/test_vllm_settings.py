"""What a vLLM worker is started with, and what is refused before it starts; without vLLM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait.server.models.catalog import BadModel, ModelFiles
from plait.server.models.inspect import check_engine
from plait.server.pool.local import process
from plait.server.settings import EngineSettings
from plait.server.workers.vllm import interpreter
from plait.server.workers.vllm.environment import DEFAULTS, PRELOADED, REQUIRED, preloaded
from plait.server.workers.vllm.interpreter import find_python

FOLDER = ModelFiles("hf", Path("/models/m"), "m")
ENGINE = EngineSettings("/models/m", worker="vllm", vllm_python=sys.executable)


def test_a_folder_is_served_with_default_options() -> None:
    check_engine(FOLDER, ENGINE)
    for weights in ("auto", "bf16", "fp32"):
        check_engine(FOLDER, replace(ENGINE, weights=weights))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("device", "cuda"),
        ("draft_model", "self"),
        ("draft_weights", "fp32"),
        ("draft_kv_cache_bytes", 1),
        ("kernels", "avx2"),
        ("prefix_cache_bytes", 1),
        ("weights", "int4"),
    ],
)
def test_options_of_the_native_engine_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(BadModel, match=option):
        check_engine(FOLDER, replace(ENGINE, **{option: value}))


def test_a_ray_worker_asks_for_as_many_gpus_as_it_has_ranks() -> None:
    divided = replace(ENGINE, tensor_parallel_size=2, pipeline_parallel_size=2, drafter="off")
    for gpus in (0.0, 4.0):  # none: on CPUs
        check_engine(FOLDER, replace(divided, ray_gpus=gpus))
    with pytest.raises(BadModel, match="ray_gpus 3: 4 ranks need a GPU each"):
        check_engine(FOLDER, replace(divided, ray_gpus=3.0))


def test_layers_on_several_devices_draft_nothing() -> None:
    check_engine(FOLDER, replace(ENGINE, pipeline_parallel_size=2, drafter="off"))
    with pytest.raises(BadModel, match="give --drafter off"):
        check_engine(FOLDER, replace(ENGINE, pipeline_parallel_size=2))


def test_gguf_files_are_refused() -> None:
    with pytest.raises(BadModel, match="not GGUF"):
        check_engine(replace(FOLDER, kind="gguf"), ENGINE)


@pytest.mark.parametrize(
    "option",
    [
        {"vllm_python": "/x"},
        {"vllm_arg": ("a=1",)},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
    ],
)
def test_a_native_worker_refuses_the_options_of_vllm(option: dict[str, Any]) -> None:
    with pytest.raises(BadModel, match=f"{next(iter(option))} is an option of vLLM workers"):
        check_engine(FOLDER, EngineSettings("/models/m", **option))


def test_the_interpreter_is_the_named_one() -> None:
    assert find_python(sys.executable) == sys.executable
    command = process.vllm_command(ENGINE)
    assert command == (sys.executable, "-P", "-m", "plait.server.workers.vllm")
    with pytest.raises(BadModel, match="there is no /none/python"):
        find_python("/none/python")


@pytest.fixture
def unknown() -> Iterator[None]:
    """No interpreter has been looked for, before or after the test."""
    find_python.cache_clear()
    yield
    find_python.cache_clear()


@pytest.mark.usefixtures("unknown")
def test_without_a_name_it_is_one_that_has_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)
    with pytest.raises(BadModel, match=r"`make vllm` installs it into .*\.venv-vllm"):
        find_python()
    beside = tmp_path / ".venv-vllm" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert find_python() == str(beside)
    monkeypatch.setattr(interpreter, "find_spec", lambda name: object())
    assert find_python() == str(beside), "a worker that starts anew has another interpreter"
    find_python.cache_clear()
    assert find_python() == sys.executable


def test_its_libraries_come_before_those_of_the_operator(tmp_path: Path) -> None:
    assert preloaded({"LD_PRELOAD": "/a.so"}, tmp_path) == "/a.so"
    library = tmp_path / "lib" / PRELOADED[0]
    library.parent.mkdir()
    library.touch()
    assert preloaded({"LD_PRELOAD": "/a.so"}, tmp_path) == f"{library}:/a.so"
    once = preloaded({}, tmp_path)
    assert preloaded({"LD_PRELOAD": once}, tmp_path) == once == str(library)


def test_no_variable_is_required_and_a_default() -> None:
    assert not REQUIRED.keys() & DEFAULTS.keys()
