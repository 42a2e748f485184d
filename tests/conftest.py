"""What holds for every test: reproducible examples, and no GPU test without a GPU."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy, so no example has a deadline; the examples are the same in every run.
settings.register_profile(
    "plait", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("plait")


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
