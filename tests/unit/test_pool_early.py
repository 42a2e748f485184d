"""A worker that is started before its settings are known."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.server.pool.local import early
from plait.server.pool.local.process import ProcessLauncher
from plait.server.pool.worker import WorkerConfig
from plait.server.settings import EngineSettings, TelemetrySettings

# Stands for a worker: writes its settings to where they say, and ends with code 7.
WORKER = """
import json, pathlib, sys
line = sys.stdin.readline()
pathlib.Path(json.loads(line)["address"]).write_text(line)
sys.exit(7)
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Return what starts a stand-in for a native worker; nothing is left of it."""
    command = (sys.executable, "-c", WORKER)
    monkeypatch.setattr(early, "NATIVE_WORKER_COMMAND", command)
    yield command
    early.drop()


def config(path: Path, threads: int = 0) -> WorkerConfig:
    engine = EngineSettings("m", threads=threads)
    return WorkerConfig(engine, TelemetrySettings(), str(path))


async def test_the_first_worker_is_the_one_that_was_started_early(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    early.start(command)
    (started,) = early._started
    launcher = ProcessLauncher(lambda engine: command, tmp_path)
    first = await launcher.start(config(tmp_path / "first"), print)
    second = await launcher.start(config(tmp_path / "second"), print)
    assert first.pid == started.pid != second.pid
    for worker, name in ((first, "first"), (second, "second")):
        assert await worker.wait() == "the worker ended with code 7"
        assert not worker.is_alive
        await worker.close()
        assert json.loads((tmp_path / name).read_text())["engine"]["model"] == "m"


async def test_a_worker_with_threads_of_its_own_is_another_one(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    early.start(command)
    (started,) = early._started
    worker = await ProcessLauncher(lambda engine: command, tmp_path).start(
        config(tmp_path / "file", threads=1), print
    )
    assert worker.pid != started.pid
    assert started.returncode is not None, "the early one was left behind"
    await worker.close()


async def test_one_that_has_ended_is_not_taken(command: tuple[str, ...], tmp_path: Path) -> None:
    early.start((sys.executable, "-c", ""))
    early._started[0].wait()
    worker = await ProcessLauncher(lambda engine: command, tmp_path).start(
        config(tmp_path / "file"), print
    )
    assert await worker.wait() == "the worker ended with code 7"
    await worker.close()


async def test_input_is_closed_though_nobody_waits_for_the_end(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    worker = await ProcessLauncher(lambda engine: command, tmp_path).start(
        config(tmp_path / "file"), print
    )
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    stdin = worker._process.stdin
    assert stdin is not None and stdin.closed
    worker.kill()
    await worker.close()


async def test_an_early_worker_can_be_killed(command: tuple[str, ...], tmp_path: Path) -> None:
    early.start((sys.executable, "-c", "import time; time.sleep(600)"))
    worker = await ProcessLauncher(lambda engine: command, tmp_path).start(
        config(tmp_path / "file"), print
    )
    assert worker.is_alive
    worker.kill()
    assert "killed by signal 9" in await worker.wait()
    await worker.close()


@pytest.mark.parametrize(
    ("arguments", "environment", "want"),
    [
        (["serve", "model"], {}, True),
        (["serve", "model", "--port=1"], {}, True),
        (["serve", "--help"], {}, False),
        (["serve", "model", "--threads=2"], {}, False),
        (["serve", "--pool", "ray"], {}, False),
        (["serve"], {"PLAIT_POOL": "ray"}, False),
        (["serve", "model"], {"PLAIT_THREADS": "2"}, False),
        (["serve", "--config", "file"], {}, False),
        (["version"], {}, False),
        ([], {}, False),
    ],
)
def test_when_one_is_wanted(arguments: list[str], environment: dict[str, str], want: bool) -> None:
    assert early.is_wanted(arguments, environment) == want


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_command_that_fails_leaves_no_worker() -> None:
    mark = uuid.uuid4().hex
    plait = Path(sys.executable).with_name("plait")
    done = subprocess.run(
        [plait, "serve", "no-such-model"],
        env={**os.environ, "EARLY_WORKER_MARK": mark},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                left.append(process.name)
        except OSError:
            continue
    assert not left


@pytest.mark.parametrize(("is_native", "want"), [(True, "PASSIVE"), (False, None)])
def test_threads_of_native_workers_sleep_while_they_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_native: bool, want: str | None
) -> None:
    """Those of vLLM must not: it would wait for their waking hundreds of times a step."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    command = (sys.executable, "-c", code, str(tmp_path / "seen"))
    if is_native:
        monkeypatch.setattr(early, "NATIVE_WORKER_COMMAND", command)
    early.spawn(command, 0).communicate()
    assert json.loads((tmp_path / "seen").read_text()).get("OMP_WAIT_POLICY") == want
