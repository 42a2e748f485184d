"""The image: what follows its name on the command line changes neither address nor log format."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest

from plait.server import cli
from plait.server.settings import Settings
from plait.server.workers.vllm.interpreter import FOLDER
from tests.fixtures.source_tree import ROOT


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each on a line of its own."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for line in lines if line for word, _, rest in [line.partition(" ")]]


def of(word: str) -> str:
    """Return what the last instruction of a kind says."""
    return [rest for name, rest in instructions() if name == word][-1]


def environment() -> dict[str, str]:
    pairs = [pair for name, rest in instructions() if name == "ENV" for pair in rest.split()]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        ["serve"],
        ["serve", "--device", "cuda"],
        ["serve", "model.gguf", "--port", "9000", "--weights", "int8"],
    ],
)
def test_every_command_listens_for_others_and_logs_json(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str] | None
) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(cli, "run", lambda settings: seen.append(settings) or 0)  # type: ignore[func-returns-value]
    for name, value in environment().items():
        if name.startswith("PLAIT_"):
            monkeypatch.setenv(name, value)
    command = json.loads(of("ENTRYPOINT")) + (
        json.loads(of("CMD")) if arguments is None else arguments
    )
    assert command[0] == "plait"
    with pytest.raises(SystemExit) as ended:
        cli.main(command[1:])
    assert ended.value.code == 0
    assert (seen[0].api.host, seen[0].telemetry.log_format) == ("0.0.0.0", "json")


def test_what_the_container_needs_is_not_in_a_command_that_is_replaced() -> None:
    assert json.loads(of("CMD")) == ["serve"]
    assert len(json.loads(of("ENTRYPOINT"))) == 1


def test_the_health_check_knows_no_address_of_its_own() -> None:
    check = of("HEALTHCHECK")
    python, flag, module = json.loads(check[check.index("[") :])
    assert (python, flag) == ("python", "-m")
    assert find_spec(module) is not None
    assert "127.0.0.1" not in check and "8000" not in check


def test_it_runs_as_nobody_in_particular() -> None:
    assert of("USER") == "10001"
    assert environment()["HOME"] == "/tmp"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, those of the stage below it first."""
    found: dict[str, list[tuple[str, str]]] = {}
    own: list[tuple[str, str]] = []
    for word, rest in instructions():
        if word == "FROM":
            below, _, name = rest.split()
            own = found[name] = list(found.get(below, ()))
        own.append((word, rest))
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda", "ray", "ray-cuda", "vllm", "vllm-cuda"])
def test_every_target_runs_plait_as_nobody_in_particular(target: str) -> None:
    built = stages()[target]
    assert [rest for word, rest in built if word == "USER"][-1] == "10001"
    assert any(rest.endswith(" /opt/plait /opt/plait") for word, rest in built if word == "COPY")


@pytest.mark.parametrize("target", ["vllm", "vllm-cuda"])
def test_vllm_is_where_its_workers_look_for_it(target: str) -> None:
    beside = f"/opt/{FOLDER}"  # find_python: beside plait's own environment
    copied = [rest for word, rest in stages()[target] if word == "COPY"]
    assert f"--from=build-{target} {beside} {beside}" in copied
    built = " ".join(rest for word, rest in stages()[f"build-{target}"] if word == "RUN")
    assert f"python -m venv {beside}" in built
    python = re.search(r"python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text())
    assert python
    path = f">{beside}/lib/python{python[1]}/site-packages/plait.pth"
    assert path in built
