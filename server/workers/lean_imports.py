"""Imports without the parts of libraries that nobody here uses: they cost time and memory.

Each is left out while its library is imported, and no longer: whoever asks for it later gets it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


def import_structlog() -> None:
    """Import structlog without rich and pygments, which would format tracebacks with all locals."""
    with _without("rich"):
        import_module("structlog")


@contextmanager
def importing() -> Iterator[None]:
    """Import many modules within: no search for garbage, since what they make will stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Within, a module that is not imported yet can't be, as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what importlib knows
    try:
        yield
    finally:
        del sys.modules[name]
