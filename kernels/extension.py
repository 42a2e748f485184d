"""Finds the compiled CPU kernels, if this installation has them.

The extension `plait.kernels._cpu` holds every C++ kernel, compiled for several instruction sets;
the best one that the processor has is chosen when it is imported. Without it (no compiler at
install time) the naive torch kernels serve, and one warning says so.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType

import torch  # the extension links against libraries that this import loads

__all__ = ["extension", "is_available", "is_supported", "isa", "isas", "use_isa"]


def is_available() -> bool:
    """Tell whether the compiled kernels can be called."""
    return _load() is not None


def is_supported(device: torch.device) -> bool:
    """Tell whether the compiled kernels serve tensors of this device."""
    return device.type == "cpu" and is_available()


def extension() -> ModuleType:
    """Return the extension module.

    Raises:
        RuntimeError: it was not built.
    """
    module = _load()
    if module is None:
        raise RuntimeError("plait was installed without its compiled kernels")
    return module


def isa() -> str:
    """Name the instruction set in use: "avx512bf16", "avx2", "generic", or "naive" without C++."""
    module = _load()
    return str(module.isa()) if module is not None else "naive"


def isas() -> tuple[str, ...]:
    """Name the compiled instruction sets that this processor has, best first."""
    module = _load()
    return tuple(module.isas()) if module is not None else ()


def use_isa(name: str) -> None:
    """Switch to another instruction set of `isas()`; for tests and benchmarks.

    Raises:
        ValueError: the processor does not have it.
    """
    extension().use_isa(name)


@cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module("plait.kernels._cpu")
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "compiled CPU kernels are missing, the slow ones serve (%s)", error
        )
        return None
