"""Hugging Face folders: safetensors weights beside a config.json.

Nothing of the folder is executed or unpickled: `auto_map` is ignored, .bin files are not read.
Torch is loaded with the first file that is opened to be read.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from plait.server.models.catalog import MALFORMED, OTHERS, BadModel, naming
from plait.server.models.checkpoint import DenseTensor
from plait.server.models.hf.config import read_config
from plait.server.models.hf.json_files import read_json
from plait.server.models.hf.layouts import TensorSlice, tensor_slices

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_PICKLED = ("*.bin", "*.pt", "*.pth")


class HfCheckpoint:
    """An open folder; tensors are read from the mapped files when asked for."""

    def __init__(self, folder: Path, framework: Literal["pt", "np"] = "pt") -> None:
        self.spec, self.diffusion = read_config(folder)
        self._stored: dict[
            str, tuple[Any, str, TensorSlice]
        ] = {}  # by usual name; file, name in it
        for path in weight_files(folder):
            file = _open(path, framework)
            for stored in file.keys():  # noqa: SIM118 (no dictionary)
                for part in tensor_slices(stored, self.spec):
                    self._stored[part.name] = file, stored, part
        self._folder = folder

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._stored.keys()

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raise BadModel if it holds no plain numbers."""
        file, stored, part = self._stored[name]
        view = file.get_slice(stored)
        if (kind := view.get_dtype()) not in _PLAIN:
            raise BadModel(
                f"{self._folder}: {stored} is stored as {kind}; only plain numbers of 16 bits and "
                f"more are read. {OTHERS['hf']}"
            )
        rows, *others = view.get_shape()
        return len(range(rows)[part.start : part.stop]), *others

    def read(self, name: str) -> DenseTensor:
        """Return one tensor as stored."""
        self.stored_shape(name)
        file, stored, part = self._stored[name]
        values: Tensor = file.get_tensor(stored)[part.start : part.stop]
        return DenseTensor(values, "bf16")


def _open(path: Path, framework: str) -> Any:
    try:
        return safe_open(path, framework=framework)
    except (*MALFORMED, OSError, SafetensorError) as error:
        raise BadModel(
            f"{path} is damaged or not whole; download it again: {error or type(error).__name__}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, in the order of their names.

    Raises:
        BadModel: there are none, or one that the index names is missing.
    """
    index = folder / _INDEX
    if index.is_file():
        with naming(index):
            names = sorted(set(read_json(index)["weight_map"].values()))
            paths = [folder / Path(name).name for name in names]
    else:
        paths = [folder / "model.safetensors"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        pickled = any(path for pattern in _PICKLED for path in folder.glob(pattern))
        hint = ": load it with transformers and save_pretrained it once" if pickled else ""
        raise BadModel(
            f"{folder} lacks {', '.join(missing)}; only safetensors weights are read{hint}"
        )
    return paths
