"""Which launchers a pool has: for each kind of worker, on this machine or on a cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import zmq.asyncio

from plait.server.pool.launcher import Launcher
from plait.server.pool.local.process import COMMANDS, ProcessLauncher
from plait.server.settings import Settings


def make_launchers(
    settings: Settings, folder: Path, context: zmq.asyncio.Context
) -> Mapping[str, Launcher]:
    """Return the launcher of each kind of worker.

    Args:
        folder: for sockets; only this user can enter it.
        context: of the sockets of all workers.
    """
    if settings.pool.pool == "local":
        return {kind: ProcessLauncher(command, folder) for kind, command in COMMANDS.items()}
    from plait.server.pool.ray.cluster import RayCluster  # noqa: PLC0415, not without a cluster
    from plait.server.pool.ray.launcher import RayLauncher  # noqa: PLC0415

    ray = settings.pool.ray
    launcher = RayLauncher(RayCluster(ray, settings.telemetry), context, ray)
    return dict.fromkeys(COMMANDS, launcher)
