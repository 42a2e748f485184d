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
SAVE_SECONDS = 60.0


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
) -> None:
    """Take the steps, one after the other.

    Args:
        folder: gets log.jsonl, with the mean of what was learnt, and the checkpoint.
        steps: those that are left.
        learn: takes one and returns its losses.
        state: returns what is to be saved.
    """
    since, losses = time.monotonic(), list[Sequence[float]]()
    for step in steps:
        losses.append(learn(step))
        if (step + 1) % LOG_EVERY == 0:
            _log(folder, step + 1, np.mean(losses, axis=0).round(4).tolist())
            losses.clear()
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


def _log(folder: Path, step: int, losses: list[float]) -> None:
    entry = {"step": step, "time": round(time.time()), "losses": losses}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _save(folder: Path, step: int, state: dict[str, Any]) -> None:
    part = _checkpoint(folder).with_suffix(".part")
    torch.save({"step": step, **state}, part)
    part.replace(_checkpoint(folder))
