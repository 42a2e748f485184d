"""The examples of docs/examples run as they stand, and say what they promise."""

from __future__ import annotations

import codeop
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest

from tests.fixtures.real_server import RealServer, real_server
from tests.fixtures.source_tree import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def run(name: str, url: str) -> str:
    command = [sys.executable, "-P", str(EXAMPLES / name)]
    env = os.environ | {"PLAIT_URL": url}
    return subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout


def test_a_streamed_chat_is_the_same_again(server: RealServer) -> None:
    have = run("openai_client.py", server.url)
    assert len(have.splitlines()) > 2
    assert have.splitlines()[-1] == f"{len(have.splitlines()) - 1} tokens"
    assert have == run("openai_client.py", server.url)


def test_answers_have_their_form(server: RealServer) -> None:
    parsed, chosen = run("response_format.py", server.url).splitlines()
    assert parsed.startswith("name=") and "is_capital=" in parsed
    assert chosen in ("yes", "no")


def test_a_prediction_changes_nothing_but_the_speed(server: RealServer) -> None:
    have = run("prediction.py", server.url)
    assert "the same text: True" in have
    assert int(have.rsplit("predicted tokens:", 1)[1]) > 0


def test_a_threshold_takes_fewer_passes(diffusion_server: RealServer) -> None:
    off, threshold, gap = run("diffusion.py", diffusion_server.url).splitlines()
    passes = [int(line.split(": ")[1].split()[0]) for line in (off, threshold)]
    assert passes[1] < passes[0]
    assert gap == "the gap: 36"


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment, in which the example packages are installed.

    What is installed beside the tests is seen there as well, through a .pth file.
    """
    folder = tmp_path_factory.mktemp("plugin")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    python = str(folder / "venv" / "bin" / "python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], capture_output=True, check=True, text=True)
    parent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(done.stdout.strip()) / "parent.pth").write_text(parent)
    packages = [
        str(shutil.copytree(EXAMPLES / name, folder / name))
        for name in ("bigram_drafter", "syntax_checks")
    ]
    pip = [sys.executable, "-m", "pip", "--python", python, "-q", "install", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *packages], check=True)
    return Path(python)


def test_an_installed_package_adds_a_drafter(with_plugin: Path, server: RealServer) -> None:
    decoding = {"drafter": {"name": "bigram", "always": True}, "trace": True}
    body = {
        "messages": [{"role": "user", "content": "Repeat this: one two one two one two one two"}],
        "max_tokens": 30,
        "temperature": 0,
        "ignore_eos": True,
        "decoding": decoding,
    }
    path = "/v1/chat/completions"
    refused = httpx.post(server.url + path, json=body, timeout=60)
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert "bigram" in refused.json()["error"]["message"]
    want = httpx.post(server.url + path, json=body | {"decoding": {"drafter": "off"}}, timeout=60)
    with real_server("--kv-cache-bytes", "100MB", python=str(with_plugin)) as other:
        have = httpx.post(other.url + path, json=body, timeout=60)
    assert have.status_code == httpx.codes.OK, have.text
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in (want, have)]
    assert texts[0] == texts[1]
    trace = have.json()["decoding"]
    assert trace["accepted"]["bigram"] > 0, json.dumps(trace)


def test_an_installed_package_adds_a_check(with_plugin: Path, server: RealServer) -> None:
    """Whatever a small model writes at temperature 1, each answer that ends is Python."""
    body = {
        "messages": [{"role": "user", "content": "Write a Python function that adds two numbers."}],
        "max_tokens": 40,
        "temperature": 1,
        "decoding": {"check": "python-syntax", "trace": True},
    }
    path = "/v1/chat/completions"
    refused = httpx.post(server.url + path, json=body, timeout=60).json()["error"]
    with real_server("--kv-cache-bytes", "100MB", python=str(with_plugin)) as other:
        answers = [
            httpx.post(other.url + path, json=body | {"seed": i}, timeout=60) for i in range(8)
        ]
    found = [each.json() for each in answers]
    ended = [each["choices"][0] for each in found if "choices" in each]

    assert "python-syntax" in refused["message"]
    assert {each["error"]["code"] for each in found if "error" in each} <= {"dead_end"}
    assert ended
    for choice in ended:
        text = choice["message"]["content"]
        lines = text if choice["finish_reason"] == "stop" else text.rpartition("\n")[0]
        assert (
            codeop.compile_command(lines + "\n", symbol="exec") or choice["finish_reason"] != "stop"
        )
    assert sum(each["decoding"]["refused"] for each in found if "decoding" in each) > 0
