"""What the trainings here share: steps that are logged and saved, and go on where they stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

LOG_EVERY = 10  # steps
JUDGE_EVERY = 25
SAVE_SECONDS = 60.0
BF16_UNITS = ("amx_bf16", "avx512_bf16")  # without which products in bf16 are slow


def fast_dtype() -> torch.dtype:
    """Return bf16 where the processor multiplies it fast, fp32 elsewhere."""
    known = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(known.get(unit, False) for unit in BF16_UNITS) else torch.float32


def fast_products() -> torch.autocast:
    """Return a context whose products are in bf16 where the processor multiplies it fast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() is torch.bfloat16)


def saved(folder: Path) -> dict[str, Any] | None:
    """Return what the run in a folder has saved last, its `step` included; None: it is new."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _checkpoint(folder)
    state: dict[str, Any] | None = torch.load(path) if path.exists() else None
    return state


def train(
    folder: Path,
    steps: range,
    learn: Callable[[int], Sequence[float]],
    state: Callable[[], dict[str, Any]],
    judge: Callable[[], Sequence[float]] = tuple,
) -> None:
    """Take the steps, one after the other.

    Args:
        folder: gets log.jsonl, with the mean of what was learnt, and the checkpoint.
        steps: those that are left.
        learn: takes one and returns its losses.
        state: returns what is to be saved.
        judge: returns how good the result is, which is logged now and then, and at the end.
    """
    since, losses = time.monotonic(), list[Sequence[float]]()
    for step in steps:
        losses.append(learn(step))
        if (step + 1) % LOG_EVERY == 0:
            _log(folder, step + 1, losses=_mean(losses))
            losses.clear()
        if ((step + 1) % JUDGE_EVERY == 0 or step + 1 == steps.stop) and (right := judge()):
            _log(folder, step + 1, right=right)
        if time.monotonic() - since > SAVE_SECONDS:
            _save(folder, step + 1, state())
            since = time.monotonic()
    _save(folder, steps.stop, state())


def descend(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use the gradients up, at a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad()


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _log(folder: Path, step: int, **found: Sequence[float]) -> None:
    entry = {"step": step, "time": round(time.time()), **found}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _save(folder: Path, step: int, state: dict[str, Any]) -> None:
    part = _checkpoint(folder).with_suffix(".part")
    torch.save({"step": step, **state}, part)
    part.replace(_checkpoint(folder))


def _mean(losses: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean losses of the steps with as many as the last one."""
    alike = [each for each in losses if len(each) == len(losses[-1])]
    found: list[float] = np.mean(alike, axis=0).round(4).tolist()
    return found
