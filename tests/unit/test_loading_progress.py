"""How far loading is: told by the loader, carried by the worker, shown to the operator."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from plait.server.models.load import load_model
from plait.server.pool.pool import Pool
from plait.server.settings import EngineSettings, PoolSettings, Settings
from plait.server.telemetry.loading import show_loading
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.pools import PARTS
from tests.fixtures.whole_models import write_whole_folder


class Terminal(io.StringIO):
    """A stream that says somebody looks at it."""

    def isatty(self) -> bool:
        return True


def test_the_loader_tells_every_layer(tmp_path: Path) -> None:
    files = write_whole_folder(tmp_path, num_hidden_layers=3)
    told: list[str] = []
    load_model(files, reference=True, tell=told.append)
    assert told == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3", "embedding and head"]


async def test_readiness_says_how_far_a_worker_is() -> None:
    settings = Settings(
        engines=(EngineSettings(model="slow"),), pool=PoolSettings(ready_timeout_s=600)
    )
    pool = Pool(settings, Telemetry(), PARTS)
    try:
        await pool.start()
        async with asyncio.timeout(50):
            while "layer 2 of 3" not in pool.ready().reason:
                await asyncio.sleep(0.01)
        assert not pool.ready().ok
        assert pool.ready().reason.startswith("slow: loading, layer 2 of 3")
    finally:
        await pool.close()


async def shown(stages: list[str]) -> None:
    """Show these stages one after the other, then the last one until it has been seen twice."""
    seen: list[str] = []
    done = asyncio.Event()

    def stage() -> str:
        seen.append(stages[min(len(seen), len(stages) - 1)])
        if len(seen) > len(stages):
            done.set()
        return seen[-1]

    showing = asyncio.create_task(show_loading(stage, log_s=0.001))
    async with asyncio.timeout(20):
        await done.wait()
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)


async def test_where_nobody_looks_lines_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with capture_logs() as logs:
        await shown(["", "m: loading", "m: loading, layer 1 of 2"])
    assert [line["stage"] for line in logs[:2]] == ["m: loading", "m: loading, layer 1 of 2"]
    assert stream.getvalue() == ""


async def test_a_terminal_gets_a_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with capture_logs() as logs:
        await shown(["m: loading, layer 7 of 30 [red]"])
    assert "layer 7 of 30 [red]" in stream.getvalue()
    assert logs == []
