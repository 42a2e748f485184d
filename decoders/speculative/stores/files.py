"""Draft stores on disk: the texts of all namespaces, for one vocabulary.

A file is MessagePack of plain fields; nothing in it is executed. Indexes are not saved; they are
built again, without what drafters had adapted to. A file is written under another name and renamed,
so it is replaced as a whole. Only its owner can read it, because it holds outputs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from plait.decoders.speculative.stores.namespaces import DraftStores, StoredText

FORMAT = 1


class StoreFileError(ValueError):
    """A file is no draft store, or was written for another vocabulary."""


class SavedText(msgspec.Struct, frozen=True, array_like=True):
    """One text: token ids as little-endian int32."""

    token_ids: bytes
    is_imported: bool


class SavedNamespace(msgspec.Struct, frozen=True):
    """A namespace, with its texts from oldest to latest."""

    name: str
    texts: list[SavedText]


class SavedStores(msgspec.Struct, frozen=True):
    """A whole file, with its namespaces from least to most recently used."""

    format: int
    vocabulary: str  # fingerprint of the tokenizer that made the ids
    spaces: list[SavedNamespace]


def save(stores: DraftStores, path: Path, vocabulary: str) -> None:
    """Write all namespaces.

    Raises:
        OSError: the file can't be written.
    """
    spaces = [
        SavedNamespace(name, [_saved(text) for text in space.texts()])
        for name, space in stores.spaces()
    ]
    content = msgspec.msgpack.encode(SavedStores(FORMAT, vocabulary, spaces))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as file:
            file.write(content)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def load(stores: DraftStores, path: Path, vocabulary: str, vocab_size: int) -> None:
    """Add the namespaces of a file within today's limits; a missing file adds none.

    Raises:
        StoreFileError: the file can't be used; nothing was added.
        OSError: it can't be read.
    """
    if not path.exists():
        return
    try:
        saved = msgspec.msgpack.decode(path.read_bytes(), type=SavedStores)
    except msgspec.MsgspecError as error:
        raise StoreFileError(f"{path} is no draft store: {error}") from error
    if saved.format != FORMAT:
        raise StoreFileError(f"{path} has format {saved.format}; this version reads {FORMAT}")
    if saved.vocabulary != vocabulary:
        raise StoreFileError(f"{path} was made for another tokenizer")
    every = [(s.name, _token_ids(t), t.is_imported) for s in saved.spaces for t in s.texts]
    if any(((ids < 0) | (ids >= vocab_size)).any() for _, ids, _ in every):
        raise StoreFileError(f"{path} holds token ids outside of the vocabulary")
    for name, ids, is_imported in every:
        stores.add(name, ids.tolist(), is_imported=is_imported)


def _saved(text: StoredText) -> SavedText:
    return SavedText(np.asarray(text.token_ids, dtype="<i4").tobytes(), text.is_imported)


def _token_ids(text: SavedText) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    whole = len(text.token_ids) // 4 * 4
    return np.frombuffer(text.token_ids[:whole], dtype="<i4")
