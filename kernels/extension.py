"""Finds the compiled CPU kernels, if this installation has them.

The extension `plait.kernels._cpu` holds every C++ kernel, compiled for several instruction sets;
the best one that the processor has is chosen when it is imported. Without it (no compiler at
install time) the reference backend is used, and one warning says so.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType

import torch  # noqa: F401 (the extension links against libraries that this import loads)

__all__ = ["is_available", "isa", "isas", "load", "missing", "use_isa"]


def is_available() -> bool:
    """Tell whether the compiled kernels can be called."""
    return not missing()


def missing() -> str:
    """Return why the compiled kernels can't be called; empty: they can."""
    found = _import()
    return found if isinstance(found, str) else ""


def load() -> ModuleType:
    """Return the extension module.

    Raises:
        RuntimeError: it was not built.
    """
    found = _import()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def isa() -> str:
    """Name the instruction set in use: "avx512bf16", "avx2", "generic"; "reference" without C++."""
    return str(load().isa()) if is_available() else "reference"


def isas() -> tuple[str, ...]:
    """Name the compiled instruction sets that this processor has, best first."""
    return tuple(load().isas()) if is_available() else ()


def use_isa(name: str) -> None:
    """Switch to another instruction set of `isas()`; for tests and benchmarks.

    Raises:
        ValueError: the processor does not have it.
    """
    load().use_isa(name)


@cache
def _import() -> ModuleType | str:
    try:
        return importlib.import_module("plait.kernels._cpu")
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "compiled CPU kernels are missing, the slow ones serve (%s)", error
        )
        return f"plait was installed without its compiled kernels ({error})"
