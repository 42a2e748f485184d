"""On the worker's machine: what starts the worker's process there and watches it.

Ray runs a `WorkerHost` in a process of its own, an actor. It is not the worker: the engine's
process is started as the pool starts one on its own machine, in the environment that the kind of
worker wants, and nothing of Ray's is between it and its requests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from plait.server.models.catalog import BadModel
from plait.server.pool.local.process import COMMANDS, Command, ProcessLauncher
from plait.server.pool.ray.weights import Manifest, WeightsFolder
from plait.server.pool.worker import WorkerConfig
from plait.server.wire.curve import Credentials, new_key_pair
from plait.server.workers.parent import die_with_parent

if TYPE_CHECKING:
    from plait.server.pool.local.process import WorkerProcess

_UNUSED = Path()  # a folder for sockets, which these workers have none of


class Introduction(msgspec.Struct, frozen=True):
    """What a host says of itself."""

    version: str  # of plait
    public_key: str  # of the worker's end
    node: str  # the machine's name


class WorkerHost:
    """An actor for one worker. Its public methods are called from afar, by way of Ray."""

    commands: ClassVar[Mapping[str, Command]] = COMMANDS  # by kind of worker

    def __init__(self) -> None:
        # Ray leaves a busy actor alone when its node's raylet is gone: it would go on for ever.
        die_with_parent()
        self._keys = new_key_pair()  # the secret one never leaves this machine
        self._process: WorkerProcess | None = None
        self._weights: dict[str, WeightsFolder] = {}

    async def introduce(self) -> bytes:
        """Return an `Introduction`, as JSON."""
        return msgspec.json.encode(
            Introduction(version("plait"), self._keys.public, os.uname().nodename)
        )

    async def missing_weights(self, manifest: bytes) -> list[str]:
        """Return which files of a `Manifest` this machine does not have yet, by their names."""
        listed = msgspec.json.decode(manifest, type=Manifest)
        self._weights[listed.model] = folder = WeightsFolder(listed)
        return folder.missing()

    async def add_weights(self, model: str, name: str, chunk: bytes, is_last: bool) -> None:
        """Append to a file that was missing."""
        self._weights[model].append(name, chunk, is_last=is_last)

    async def run(self, config: bytes) -> str:
        """Start the worker's process; return when it has ended: how, in words.

        Args:
            config: a WorkerConfig as JSON.
        """
        given = msgspec.json.decode(config, type=WorkerConfig)
        engine = given.engine
        for folder in self._weights.values():
            engine = folder.in_place(engine)
        credentials = Credentials(given.server_key, self._keys)
        own = msgspec.structs.replace(given, engine=engine, credentials=credentials)
        launcher = ProcessLauncher(self.commands[engine.worker], _UNUSED)
        try:
            self._process = await launcher.start(own, lambda stage: None)
        except (OSError, BadModel) as error:
            return f"the worker could not be started: {error}"
        try:
            return await self._process.wait()
        finally:
            self._process.kill()

    async def cpu_seconds(self) -> float | None:
        """Return the CPU time that the worker's process has used so far."""
        return self._process.cpu_seconds() if self._process is not None else None
