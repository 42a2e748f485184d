"""Copies of a model's files on a machine that does not share a folder with the front end.

The front end lists the files, a host says which of them it lacks, and gets these in chunks through
Ray's object store. A copy is found again by what it was made from; nothing deletes old ones.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from plait.server.settings import EngineSettings

CHUNK_BYTES = 32 * 2**20
FOLDER = "plait-weights"


class ModelFile(msgspec.Struct, frozen=True):
    """A file, named relative to the folder that all the files are in."""

    name: str
    num_bytes: int
    modified_ns: int


class Manifest(msgspec.Struct, frozen=True):
    """The files of one model, which the settings call `model`."""

    model: str
    folder: str  # on the front end's machine
    entry: str  # what to load, relative to it: a file, or . for the folder
    files: list[ModelFile]

    @property
    def key(self) -> str:
        """What tells this model's files from those of another, or of another version of it."""
        listed = sorted((each.name, each.num_bytes, each.modified_ns) for each in self.files)
        return hashlib.sha256(repr((self.folder, self.entry, listed)).encode()).hexdigest()[:32]


def list_models(engine: EngineSettings) -> list[Manifest]:
    """Return the files behind an engine's settings; built-in models are on every machine."""
    return [_list(name) for name in (engine.model, engine.draft_model) if name and _is_path(name)]


def _is_path(name: str) -> bool:
    return Path(name).exists()


def _list(name: str) -> Manifest:
    path = Path(name)
    folder, entry = (path, ".") if path.is_dir() else (path.parent, path.name)
    paths = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    files = [_file(each, each.relative_to(folder)) for each in paths]
    return Manifest(name, str(folder.resolve()), entry, files)


def _file(path: Path, name: Path) -> ModelFile:
    stat = path.stat()
    return ModelFile(name.as_posix(), stat.st_size, stat.st_mtime_ns)


def read_chunks(manifest: Manifest, name: str) -> Iterator[tuple[bytes, bool]]:
    """Yield the parts of a file, each with whether it is the last; raise OSError if unreadable."""
    with (Path(manifest.folder) / name).open("rb") as file:
        chunk = file.read(CHUNK_BYTES)
        while True:
            following = file.read(CHUNK_BYTES)
            yield chunk, not following
            if not following:
                return
            chunk = following


class WeightsFolder:
    """The copies on one machine of one model's files."""

    def __init__(self, manifest: Manifest, root: Path | None = None) -> None:
        """Take the place of the copies; root: the folder for temporary files unless given."""
        self._manifest = manifest
        root = root or Path(tempfile.gettempdir())
        # Only this user may write what this user's workers will load.
        own = root / f"{FOLDER}-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        if own.is_symlink() or own.stat().st_uid != os.getuid():
            raise PermissionError(f"{own} belongs to somebody else")
        self.path = own / manifest.key
        self._begun: set[str] = set()

    def missing(self) -> list[str]:
        """Return the names of the files that are not here, or not whole."""
        return [each.name for each in self._manifest.files if not self._is_here(each)]

    def append(self, name: str, chunk: bytes, *, is_last: bool) -> None:
        """Append to a file that is missing; it gets its name once it is whole."""
        if name not in {each.name for each in self._manifest.files}:
            raise ValueError(f"{name!r} is none of the model's files")
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("ab" if name in self._begun else "wb") as file:
            file.write(chunk)
        self._begun.add(name)
        if is_last:
            part.replace(path)

    def in_place(self, engine: EngineSettings) -> EngineSettings:
        """Return an engine's settings with the copy instead of the model that it was made from."""
        own, model = str(self.path / self._manifest.entry), self._manifest.model
        return replace(
            engine,
            model=own if engine.model == model else engine.model,
            draft_model=own if engine.draft_model == model else engine.draft_model,
        )

    def _is_here(self, file: ModelFile) -> bool:
        path = self.path / file.name
        return path.is_file() and path.stat().st_size == file.num_bytes
