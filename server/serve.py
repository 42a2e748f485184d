"""The life cycle of a server: bind, start the pool, serve, drain, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog
import uvloop

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.errors import ServerError
from plait.server.http_server import HttpServer
from plait.server.memory import return_freed_memory
from plait.server.models.catalog import BadModel
from plait.server.pool.pool import Pool, PoolDependencies
from plait.server.pool.worker import BAD_MODEL, WorkerGone
from plait.server.settings import ApiSettings, EngineSettings, Settings
from plait.server.telemetry.loading import show_loading
from plait.server.telemetry.logs import configure_logging
from plait.server.telemetry.streams import write_stdout
from plait.server.telemetry.telemetry import Telemetry, build_telemetry
from plait.server.telemetry.token_trace import open_trace

EXIT_FAILED, EXIT_BAD_MODEL = 1, 2
BACKLOG = 2048
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # Docker's and Podman's
_IMPORTED = time.monotonic()

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """What the HTTP layer is built on."""

    pool: Pool
    telemetry: Telemetry


class Signals:
    """What the process is told by signals.

    SIGTERM and SIGINT: the first one drains the server, a second one stops it at once. SIGUSR2: it
    replaces its workers, one after the other.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self.stop = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.replace = asyncio.Event()

    def listen(self) -> None:
        """Handle the signals on the running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive)
        loop.add_signal_handler(signal.SIGUSR2, self.replace.set)

    def _receive(self) -> None:
        if not self.stop.is_set():
            log.info("shutting down", drain_s=self._drain_s, hint="a second signal ends it at once")
            self.stop.set()
        elif not self.stop_now.is_set():
            log.info("shutting down at once")
            self.stop_now.set()


def run(settings: Settings, dependencies: PoolDependencies | None = None) -> int:
    """Serve until a signal; return the process's exit code."""
    configure_logging(settings.telemetry)
    try:
        check_token_traces(settings.engines)
    except OSError as error:
        return _fail(f"token_trace: can't write {error.filename}: {error.strerror}", EXIT_BAD_MODEL)
    try:
        listener = bind(settings.api)
    except OSError as error:
        return _fail(f"can't listen on {settings.api.host}:{settings.api.port}: {error}")
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, listener, dependencies))


def check_token_traces(engines: Iterable[EngineSettings]) -> None:
    """Raise OSError if a token trace can't be opened; later failures are only logged."""
    for engine in engines:
        if engine.token_trace:
            os.close(open_trace(Path(engine.token_trace)))


def bind(settings: ApiSettings) -> socket.socket:
    """Return a listening socket; raise OSError if the address can't be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)


async def _serve(
    settings: Settings, listener: socket.socket, dependencies: PoolDependencies | None
) -> int:
    signals = Signals(settings.api.drain_s)
    signals.listen()
    telemetry = build_telemetry(settings.telemetry)
    pool = Pool(settings, telemetry, dependencies)
    try:
        try:
            await pool.start()
        except OSError as error:
            return _fail(f"can't start: {error}")
        _publish_address(pool, listener)
        await _run_http_server(settings, listener, Backend(pool, telemetry), signals)
        return 0
    except BadModel as error:
        return _fail(str(error), EXIT_BAD_MODEL)
    except WorkerGone as error:
        if error.reason == BAD_MODEL:
            return _fail(str(error), EXIT_BAD_MODEL)
        return _fail(f"can't start: {error}")
    except ServerError as error:
        return _fail(f"can't start: {error}")
    finally:
        await pool.close()
        telemetry.tracing.close()


def _publish_address(pool: Pool, listener: socket.socket) -> None:
    """Publish the server's address for health checks; log a warning if that fails."""
    host, port = listener.getsockname()[:2]
    try:
        pool.publish(host, port)
    except OSError as error:  # a full disk, for instance; the server itself does not need the file
        log.warning("health checks won't find this server", reason=str(error))


async def _run_http_server(
    settings: Settings, listener: socket.socket, backend: Backend, signals: Signals
) -> None:
    """Run the HTTP server until a signal stops it; it starts before the models have loaded."""
    # Imported here, while the workers load: the web framework takes a while to import.
    from plait.server.api.app import create_app  # noqa: PLC0415

    app = create_app(settings.api, backend.pool, backend.telemetry)
    server = HttpServer(backend.telemetry.tracing.wrap(app), settings.api)
    serving = asyncio.create_task(server.run_on(listener))
    loading = asyncio.create_task(_announce_ready(backend.pool, listener))
    replacing = asyncio.create_task(_replace_workers(backend.pool, signals))
    try:
        stopping = asyncio.create_task(signals.stop.wait())
        await _first_of(stopping, serving, loading)
        await _first_of(stopping, serving)
        draining = asyncio.create_task(backend.pool.drain(settings.api.drain_s))
        await _first_of(draining, asyncio.create_task(signals.stop_now.wait()))
    finally:
        loading.cancel()
        replacing.cancel()
        server.stop(at_once=signals.stop_now.is_set())
        await serving


async def _replace_workers(pool: Pool, signals: Signals) -> None:
    """Replace the pool's workers whenever a signal asks for it; until cancelled."""
    while True:
        await signals.replace.wait()
        signals.replace.clear()
        await pool.wait_ready()
        try:
            await pool.replace_workers()
            log.info("all workers replaced")
        except WorkerGone as gone:
            log.error("the workers are not all replaced", reason=str(gone))


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    """Wait for the first task to finish; raise its error if it failed."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _announce_ready(pool: Pool, listener: socket.socket) -> None:
    """Print a line when all models have loaded, with the time since this process started."""
    showing = asyncio.create_task(show_loading(lambda: pool.ready().reason))
    try:
        await pool.wait_ready()
    finally:
        showing.cancel()
        await asyncio.gather(
            showing, return_exceptions=True
        )  # its line is gone before the next one
    seconds = seconds_since_start()
    return_freed_memory()  # what reading the tokenizers has held
    names = [model.name for model in pool.models()]
    word = "model" if len(names) == 1 else "models"
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    write_stdout(
        f"plait ready in {seconds:.1f} s: {word} {', '.join(names)} on http://{shown}:{port}\n"
    )
    for model in pool.models():
        if model.info is not None and model.info.diffusion is not None:
            write_stdout(f"{model.name}: {describe_diffusion(model.info.diffusion)}\n")
    if ip_address(host).is_loopback and any(Path(mark).exists() for mark in CONTAINER_MARKS):
        log.warning("only this container can reach the server", host=host, hint="--host 0.0.0.0")


def describe_diffusion(spec: DiffusionSpec) -> str:
    """Describe a diffusion model in one line: attention, block sizes, mask token."""
    sizes = sorted({spec.block_size, *spec.block_sizes})
    others = f" ({', '.join(map(str, sizes))} on request)" if len(sizes) > 1 else ""
    full = ", full attention on request" if spec.also_full else ""
    shift = ", shifted heads" if spec.shift else ""
    return (
        f"diffusion, {spec.attention} attention, blocks of {spec.block_size}{others}{full}{shift}, "
        f"mask token {spec.mask_id}"
    )


def seconds_since_start() -> float:
    """Return the age of this process, with interpreter start and imports; to 0.01 s on Linux."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.monotonic() - _IMPORTED
    after_name = stat.read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc_pid_stat(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    with suppress(OSError):  # standard error is closed; the exit code remains
        sys.stderr.write(f"plait: {message}\n")
    return code
