"""Hugging Face folders: safetensors weights beside a config.json.

Nothing of the folder is executed or unpickled: `auto_map` is ignored, .bin files are not read.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from plait.server.models.catalog import BadModel
from plait.server.models.checkpoint import Dense
from plait.server.models.hf.config import read_config
from plait.server.models.hf.layouts import Part, parts

_INDEX = "model.safetensors.index.json"


class HfCheckpoint:
    """An open folder; tensors are read from the mapped files when asked for."""

    def __init__(self, folder: Path) -> None:
        self.spec, self.diffusion = read_config(folder)
        self._stored: dict[str, tuple[Any, str, Part]] = {}  # by usual name; file, name in it
        for path in weight_files(folder):
            file = _open(path)
            for stored in file.keys():  # noqa: SIM118 (no dictionary)
                for part in parts(stored, self.spec):
                    self._stored[part.name] = file, stored, part

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._stored.keys()

    def read(self, name: str) -> Dense:
        """Return one tensor as stored."""
        file, stored, part = self._stored[name]
        values: Tensor = file.get_tensor(stored)[part.start : part.stop]
        if not values.is_floating_point() or values.element_size() < 2:
            raise BadModel(f"{name} is stored as {values.dtype}, which is not supported")
        return Dense(values, "bf16")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise BadModel(f"{path} is damaged: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, in the order of their names.

    Raises:
        BadModel: there are none, or one that the index names is missing.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise BadModel(f"{index} is damaged: {error}") from error
        paths = [folder / Path(name).name for name in names]
    else:
        paths = [folder / "model.safetensors"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BadModel(f"{folder} lacks {', '.join(missing)}; only safetensors weights are read")
    return paths
