"""Chooses the backend of a device, once, when a model is loaded."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch

from plait.kernels.backend import KernelBackend
from plait.kernels.compiled_cpu import CompiledCpuBackend

BACKENDS: Final = (CompiledCpuBackend, KernelBackend)  # best first; the last one runs everywhere


def choose_backend(device: torch.device, *, reference: bool = False) -> KernelBackend:
    """Return the best backend that can run on a device.

    reference: take the reference even where a faster one can run.
    """
    if reference:
        return KernelBackend(device)
    return next(kind(device) for kind in BACKENDS if not kind.unsupported(device))


def refusals(device: torch.device) -> dict[str, str]:
    """Return why the better backends can't run on a device, by their names."""
    reasons = {kind.name: kind.unsupported(device) for kind in BACKENDS}
    return {name: reason for name, reason in reasons.items() if reason}


@cache
def cpu_backend() -> KernelBackend:
    """Return the backend of the CPU: what decoders use that are given none."""
    return choose_backend(torch.device("cpu"))
