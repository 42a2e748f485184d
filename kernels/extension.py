"""Finds the compiled CPU kernels, if this installation has them.

The extension `plait.kernels._cpu` holds every C++ kernel, compiled for several instruction sets
("paths"). Of each operation the fastest one that the processor can run is used, which is measured
at the first call (some 30 ms). All paths of x86 give the same bits (but avx512bf16 with bf16
weights), so texts depend neither on the choice nor on the processor. Without the extension (no
compiler at install time) the reference backend is used, and one warning says so.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Final

import torch  # noqa: F401 (the extension links against libraries that this import loads)

__all__ = ["FASTEST", "describe", "is_available", "isa", "isas", "load", "missing", "use_isa"]

FASTEST: Final = "fastest"


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
    """Name the path in use, "fastest" unless `use_isa` chose another; "reference" without C++."""
    return str(load().isa()) if is_available() else "reference"


def isas() -> tuple[str, ...]:
    """Name the compiled paths that this processor can run, best first: amx, avx512vnni, ..."""
    return tuple(load().isas()) if is_available() else ()


def use_isa(name: str) -> None:
    """Switch to a path of `isas()`, or to the fastest of each operation.

    Raises:
        ValueError: the processor can't run it.
    """
    load().use_isa(name)


def describe() -> dict[str, str]:
    """Return the path of each operation, e.g. int4: "avx512vnni, amx from 9 rows"."""
    if not is_available():
        return {}
    return {name: _runs(paths) for name, paths in load().operations().items()}


def _runs(paths: Sequence[str]) -> str:
    """Say which path serves how many rows; entry i is of up to 2**i rows, the last one of more."""
    said = [paths[0]]
    for i, (before, path) in enumerate(pairwise(paths)):
        if path != before:
            said.append(f"{path} from {2**i + 1} rows")
    return ", ".join(said)


@cache
def _import() -> ModuleType | str:
    try:
        return importlib.import_module("plait.kernels._cpu")
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "compiled CPU kernels are missing, the slow ones serve (%s)", error
        )
        return f"plait was installed without its compiled kernels ({error})"
