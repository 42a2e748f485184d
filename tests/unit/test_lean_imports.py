"""What is left out of libraries is left out, and whoever asks for it later gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    """Run code in a fresh interpreter; return what it printed."""
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_structlog_works_without_what_is_left_out() -> None:
    code = """
import sys
from plait.server.workers.lean_imports import import_structlog
import_structlog()
import structlog
print([name for name in ("rich", "pygments") if name in sys.modules])
import rich.console
"""
    assert python(code) == "[]\n"


@pytest.mark.parametrize("module", ["rich", "torch", "fastapi"])
def test_the_command_line_imports_little(module: str) -> None:
    code = f"""
import sys
from plait.server.workers.lean_imports import import_structlog
import_structlog()
import plait.server.cli
print({module!r} in sys.modules)
"""
    assert python(code) == "False\n"
