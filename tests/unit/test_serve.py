"""A server's life in a process of its own: it starts, drains, hurries, leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.run_folder import running_addresses
from plait.server.serve import bind, describe_diffusion
from plait.server.settings import ApiSettings
from tests.fixtures import scripted_worker as script

ROOT = Path(__file__).parents[2]
SERVER = str(ROOT / "tests" / "fixtures" / "scripted_server.py")


@dataclass
class Served:
    process: Process
    port: int

    def children(self) -> list[int]:
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]


async def spawn(port: int = 0, model: str = "m", drain_s: float = 30.0) -> Process:
    arguments = [SERVER, str(port), model, str(drain_s), str(ROOT)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", *arguments, stdout=PIPE, stderr=PIPE
    )


@asynccontextmanager
async def server(drain_s: float = 30.0) -> AsyncIterator[Served]:
    process = await spawn(drain_s=drain_s)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(50):
            line = (await process.stdout.readline()).decode()
        ready = re.fullmatch(
            r"plait ready in \d+\.\d s: model m on http://127\.0\.0\.1:(\d+)\n", line
        )
        assert ready, line
        yield Served(process, int(ready[1]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def connection(port: int, sent: str) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent.encode())
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def get(port: int, path: str) -> int:
    sent = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with connection(port, sent) as reader:
        return int((await reader.readline()).split()[1])


@asynccontextmanager
async def stream(port: int, kind: int, max_tokens: int) -> AsyncIterator[asyncio.StreamReader]:
    """Start a streamed completion; enter once its first chunk is here."""
    body = json.dumps({"model": "m", "prompt": [kind], "max_tokens": max_tokens, "stream": True})
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    sent = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}"
    async with connection(port, sent) as reader:
        assert b"200 OK" in await reader.readline()
        await reader.readuntil(b"data: ")
        yield reader


async def test_sigterm_lets_streams_end_and_exits_0() -> None:
    async with server() as served:
        children = served.children()
        async with stream(served.port, script.ENDLESS, 4000) as reader:
            served.process.send_signal(signal.SIGTERM)
            while await get(served.port, "/ready") != 503:
                pass
            assert await get(served.port, "/health") == 200
            os.kill(children[0], signal.SIGUSR1)
            rest = await reader.read()
        assert b"[DONE]" in rest
        assert b'"error"' not in rest
        assert await served.process.wait() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


async def test_the_drain_has_an_end() -> None:
    async with server(drain_s=0.05) as served:
        async with stream(served.port, script.ENDLESS, 4000) as reader:
            served.process.send_signal(signal.SIGTERM)
            assert b'"error"' in await reader.read()
        assert await served.process.wait() == 0


async def test_a_second_signal_ends_it_at_once() -> None:
    async with server() as served, stream(served.port, script.ENDLESS, 4000):
        served.process.send_signal(signal.SIGINT)
        while await get(served.port, "/ready") != 503:
            pass
        served.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await served.process.wait() == 0
        assert served.process.stderr is not None
        said = (await served.process.stderr.read()).decode()
        assert said.count("shutting down ") == 2
        assert said.index("drain_s=30.0") < said.index("shutting down at once")


@pytest.mark.parametrize(
    "streams",
    ["<&- >&- 2>&-", ">&-", ">/dev/full 2>/dev/full"],
    ids=["all closed", "no output", "full disk"],
)
async def test_standard_streams_are_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    command = [sys.executable, "-P", SERVER, "0", "m", "30", str(ROOT)]
    process = await asyncio.create_subprocess_shell(f"exec {shlex.join(command)} {streams}")
    try:
        async with asyncio.timeout(50):
            while not (addresses := running_addresses()):
                await asyncio.sleep(0.01)
            ((_, port),) = addresses
            while await get(port, "/ready") != 200:
                await asyncio.sleep(0.01)
            async with stream(port, script.COUNT, 4) as reader:
                assert b"[DONE]" in await reader.read()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_workers_do_not_outlive_a_killed_server() -> None:
    async with server() as served:
        children = served.children()
        assert children
        served.process.kill()
        await served.process.wait()
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}/exe").exists() for pid in children):
                await asyncio.sleep(0.01)


async def test_a_port_in_use_is_told_in_one_line() -> None:
    with bind(ApiSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        process = await spawn(port=port)
        _, stderr = await process.communicate()
    assert process.returncode == 1
    (line,) = stderr.decode().splitlines()
    assert line.startswith(f"plait: can't listen on 127.0.0.1:{port}: ")


async def test_a_model_that_does_not_load_is_told_in_one_line() -> None:
    process = await spawn(model="broken")
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert stderr.decode() == "plait: the script says that this model is broken\n"


def test_a_diffusion_model_is_described_in_a_line() -> None:
    spec = DiffusionSpec(1, (0,), "block", 32, (4, 32), also_full=True)
    have = describe_diffusion(spec)
    want = "diffusion, block attention, blocks of 32 (4, 32 on request), full attention on request"
    assert have == f"{want}, mask token 1"
    shifted = DiffusionSpec(7, (0,), "full", 16, shift=True)
    want = "diffusion, full attention, blocks of 16, shifted heads, mask token 7"
    assert describe_diffusion(shifted) == want
