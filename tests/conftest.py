"""What holds for every test: reproducible examples, no GPU test without a GPU, a core for each.

Tests run in two processes (pyproject.toml). In these, and in the servers that they start, kernels
take one thread, or the threads would wait for each other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.fixtures.vllm_worker import PYTHON

# The machine may be busy, so no example has a deadline; the examples are the same in every run.
settings.register_profile(
    "plait", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("plait")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# Files of tests/e2e whose tests share a server, and the parameters that name one.
SERVERS = {"faults": "faults", "readme": "smollm2", "diffusion_requests": "tiny-diffusion"}
FILES = re.compile(rf"tests/e2e/test_({'|'.join(SERVERS)})\.py")
PARAMETERS = re.compile(r"tests/e2e/.*\[(smollm2|tiny-diffusion|vllm)\b")


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """Gives all tests of a real server to one process, which starts it once.

    Marks xdist_group would be the way, but pytest 9.2 ignores them (pytest-xdist issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        if found := FILES.match(nodeid):
            return SERVERS[found[1]]
        found = PARAMETERS.match(nodeid)
        return found[1] if found else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    """Give a test the same random tensors wherever it runs, whatever ran before it."""
    torch.manual_seed(0)


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _skip(items, "gpu", "needs a CUDA device", _has_gpu)
    _skip(items, "vllm", "needs vLLM: `make vllm` installs it", PYTHON.exists)


def _skip(items: list[pytest.Item], mark: str, reason: str, is_there: Callable[[], bool]) -> None:
    marked = [item for item in items if item.get_closest_marker(mark)]
    if marked and not is_there():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
