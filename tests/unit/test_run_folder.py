"""Folders of servers: those of the dead are swept, those of the living are found and asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from plait.server import health
from plait.server.run_folder import open_run_folder, running_addresses
from plait.server.serve import bind
from plait.server.settings import ApiSettings

# Opens a folder, says where, and waits for the end of its input.
OWNER = """
import sys
from plait.server.run_folder import open_run_folder
folder = open_run_folder()
folder.publish("::", 7)
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this test, and what it starts, have temporary files of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run another process that has such a folder."""
    command = [sys.executable, "-P", "-c", OWNER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_folders_of_killed_processes_go_and_others_stay(temporary: Path) -> None:
    for name in ("plait-models", "other"):
        (temporary / name).mkdir()
    with owner() as (one, first), owner() as (_, second):
        one.kill()
        one.wait()
        (first / "0.sock").touch()
        mine = open_run_folder()
        assert not first.exists()
        assert (second / "lock").exists()
        names = {"plait-models", "other", second.name, mine.path.name}
        assert {path.name for path in temporary.iterdir()} == names
        mine.close()
        assert not mine.path.exists()
        open_run_folder().close()
        assert second.exists()


def test_a_link_is_not_followed(temporary: Path) -> None:
    target = temporary / "data"
    target.mkdir()
    (target / "lock").touch()
    (temporary / "plait-evil").symlink_to(target)
    open_run_folder().close()
    assert target.exists()


def test_addresses_are_those_of_the_living() -> None:
    assert running_addresses() == []
    with owner() as (other, _):
        folder = open_run_folder()
        assert running_addresses() == [("::", 7)]  # ours has none yet
        folder.publish("127.0.0.1", 8)
        assert sorted(running_addresses()) == [("127.0.0.1", 8), ("::", 7)]
        other.kill()
        other.wait()
        assert running_addresses() == [("127.0.0.1", 8)]
        folder.close()
    assert running_addresses() == []


def test_no_folder_for_temporary_files_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    with pytest.raises(OSError, match="Not a directory"):
        open_run_folder()


@contextmanager
def answering(status: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Run an HTTP server that gives every GET of /ready this status; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()
            self.wfile.write(b"still loading")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer((host, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "said"), [(200, 0, ""), (503, 1, "is not ready: still loading")]
)
def test_health_follows_the_server(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    status: int,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    folder = open_run_folder()
    with answering(status) as port:
        folder.publish("0.0.0.0", port)
        assert health.main() == code
        assert said in capsys.readouterr().out
    folder.close()


def test_health_without_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main() == 1
    assert capsys.readouterr().out == "plait: no server of this user runs here\n"
    with bind(ApiSettings(port=0)) as closed:
        port = closed.getsockname()[1]
    folder = open_run_folder()
    folder.publish("127.0.0.1", port)
    assert health.main() == 1
    assert f"127.0.0.1:{port} does not answer: " in capsys.readouterr().out
    folder.close()


def test_health_imports_next_to_nothing() -> None:
    code = (
        "import sys, plait.server.health; print('pydantic' in sys.modules, 'numpy' in sys.modules)"
    )
    environment = os.environ | {"PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout == "False False\n"
