"""Find the draft heads, shipped with plait or beside a model, that were trained for its weights.

A head is a safetensors file named after its drafter: <drafter>.safetensors. Its metadata say under
`weights` for which model files it was trained (fingerprint of the files, in no mode), and it serves
no others: a head of another model would draft, but almost nothing would be accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from plait.server.models.catalog import MALFORMED, BadModel, ModelFiles
from plait.server.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from plait.server.models.transformer import Transformer

SHIPPED = Path(__file__).parent / "drafter_heads"
NAMES = ("ppd", "eagle", "chimera")


def find_heads(files: ModelFiles, shipped: Path = SHIPPED) -> dict[str, Path]:
    """Return the heads that were trained for these files, by drafter; those beside them win.

    Raises:
        BadModel: a file of such a name can't be read.
    """
    paths = list(_candidates(files, shipped))
    if not paths:
        return {}
    own = belongs_to(files)
    return {path.stem: path for path in paths if _weights_of(path) == own}


def add_inputs(model: Transformer, heads: Mapping[str, Path]) -> int:
    """Give a model the inputs that its heads feed; return how many: ids from vocab_size on.

    Raises:
        BadModel: they are not as wide as the model, or no numbers.
    """
    if "ppd" not in heads:
        return 0
    try:
        with safe_open(heads["ppd"], framework="pt") as file:
            inputs = file.get_tensor("embeddings")
        if not inputs.isfinite().all():
            raise ValueError("embeddings holds numbers that are NaN or infinite")
        model.extend(inputs)
    except (*MALFORMED, OSError, SafetensorError, RuntimeError) as error:
        raise BadModel(f"{heads['ppd']}: {error}") from error
    return len(inputs)


def belongs_to(files: ModelFiles) -> str:
    """Return the `weights` entry in the metadata of a head that was trained for these files."""
    return fingerprint(files, "")


def _candidates(files: ModelFiles, shipped: Path) -> Iterator[Path]:
    folders = sorted(shipped.iterdir()) if shipped.is_dir() else []
    if files.kind == "hf":
        folders.append(files.path)
    for folder in folders:
        for name in NAMES:
            path = folder / f"{name}.safetensors"
            if path.is_file():
                yield path


def _weights_of(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("weights", ""))
    except (*MALFORMED, OSError, SafetensorError) as error:
        raise BadModel(f"{path} is damaged: {error}") from error
