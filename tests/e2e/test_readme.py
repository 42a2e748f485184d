"""What the README says a user can type works as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.fixtures.real_server import RealServer
from tests.fixtures.source_tree import ROOT

README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def _block(language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    return next(block for block in blocks if containing in block)


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_lines(server: RealServer) -> None:
    script = _block("sh", "curl").replace(ADDRESS, server.url).replace("curl", "curl -sSf", 1)
    answer = json.loads(_run(["sh", "-c", script]))
    assert re.search(r"7|seven", answer["choices"][0]["message"]["content"])


def test_python_lines(server: RealServer) -> None:
    script = _block("python", "OpenAI").replace(ADDRESS, server.url)
    assert re.fullmatch(r"name='.*' age=-?\d+\n", _run([sys.executable, "-P", "-c", script]))


def test_lines_without_make_name_what_make_installs() -> None:
    lines = _block("sh", "python3 -m venv")
    install = (ROOT / "requirements" / "install.sh").read_text()
    torch = re.search(r"^torch=(.+)$", install, re.M)
    assert torch is not None
    assert f"torch=={torch[1]}+cpu" in lines
    assert "--no-deps --no-build-isolation -e ." in lines
    assert "--no-deps --no-build-isolation -e ." in install
    for name in re.findall(r"requirements/\w+\.\w+", README):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("target", ["serve", "test", "dev", "check", "bench", "docs", "lock"])
def test_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
