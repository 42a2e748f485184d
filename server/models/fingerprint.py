"""A fingerprint of the served weights, the same after restarts and on other machines.

It is the `system_fingerprint` of responses and part of the prefix cache's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from plait.server.models.catalog import ModelFiles
from plait.server.models.hf.folder import weight_files

_HEAD = 16 * 2**20  # holds the tensor table, and most vocabularies of GGUF files
_SAMPLES = 64
_SAMPLE = 4096


def fingerprint(files: ModelFiles, mode: str) -> str:
    """Return 16 hexadecimal digits for the model's files and the mode of its weights.

    Not a checksum: of each file its name, its size, its beginning and 64 samples are read, which
    tells two trainings or quantisations apart. Cost: about 20 ms per file.
    """
    digest = blake2b(mode.encode(), digest_size=8)
    for path in _paths(files):
        _update(digest, path)
    return digest.hexdigest()


def vocabulary_fingerprint(token_bytes: Sequence[bytes]) -> str:
    """Return 16 hexadecimal digits for a vocabulary: what each token id adds to a text."""
    digest = blake2b(digest_size=8)
    for text in token_bytes:
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def _paths(files: ModelFiles) -> list[Path]:
    if files.kind == "gguf":
        return [files.path]
    return [files.path / "config.json", *weight_files(files.path)]


def _update(digest: blake2b, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"\0{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD))
        for sample in range(1, _SAMPLES + 1):
            file.seek(max(0, (size - _SAMPLE) * sample // _SAMPLES))
            digest.update(file.read(_SAMPLE))
