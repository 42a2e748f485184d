"""When a silent worker is taken for a hung one: by its CPU time, not by a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from plait.server.pool.replica import Replica
from plait.server.pool.supervisor import CHECKS_PER_TIMEOUT, _monitor_heartbeat
from plait.server.pool.worker import Worker
from plait.server.telemetry.telemetry import Telemetry

TIMEOUT_S = 0.04
LOOK_S = TIMEOUT_S / CHECKS_PER_TIMEOUT


class SilentWorker:
    """Says nothing; its CPU time is a function of how often it has been looked at."""

    def __init__(self, cpu_s: Callable[[int], float | None]) -> None:
        self._cpu_s = cpu_s
        self.num_looks = -1  # the first is before any time has passed
        self.is_killed = False
        self.on_look: Callable[[int], None] = lambda look: None

    def cpu_seconds(self) -> float | None:
        self.num_looks += 1
        self.on_look(self.num_looks)
        return self._cpu_s(self.num_looks)

    def kill(self) -> None:
        self.is_killed = True


def _replica() -> Replica:
    return Replica("m", 0, Telemetry().metrics.engine("m", "0"))


@pytest.mark.parametrize(
    ("cpu_s", "want"),
    [
        pytest.param(lambda look: 5.0, CHECKS_PER_TIMEOUT, id="waits for ever"),
        pytest.param(lambda look: None, CHECKS_PER_TIMEOUT, id="nobody knows"),
        pytest.param(lambda look: 5.0 + look * LOOK_S, CHECKS_PER_TIMEOUT, id="loops for ever"),
        pytest.param(lambda look: 5.0 + look * LOOK_S * 8, CHECKS_PER_TIMEOUT, id="on eight cores"),
        pytest.param(
            lambda look: 5.0 + look * LOOK_S / 4, 4 * CHECKS_PER_TIMEOUT, id="loops on a quarter"
        ),
        pytest.param(lambda look: 5.0 + min(look, 9) * LOOK_S / 4, 10, id="ran, then waits"),
    ],
)
async def test_a_silent_worker_is_killed_once_it_had_its_time(
    cpu_s: Callable[[int], float | None], want: int
) -> None:
    worker, replica = SilentWorker(cpu_s), _replica()
    await _monitor_heartbeat(replica, cast(Worker, worker), TIMEOUT_S)
    assert worker.is_killed
    assert worker.num_looks == pytest.approx(want, abs=1), "a look more by rounding"
    assert replica.down_reason == "the worker hangs"


async def test_a_report_begins_the_count_anew() -> None:
    worker, replica = SilentWorker(lambda look: look * LOOK_S), _replica()

    def report(look: int) -> None:
        if look == CHECKS_PER_TIMEOUT - 1:
            replica.num_reports += 1

    worker.on_look = report
    await _monitor_heartbeat(replica, cast(Worker, worker), TIMEOUT_S)
    assert worker.num_looks == pytest.approx(2 * CHECKS_PER_TIMEOUT - 1, abs=1)
