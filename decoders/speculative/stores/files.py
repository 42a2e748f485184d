"""Draft stores on disk: the texts that are kept, by namespace, bound to a vocabulary.

MessagePack of plain fields; nothing in a file is ever run. Indexes are not saved but made anew, and
so is what drafters have adapted to. A file is written beside the old one and takes its place whole.
Only its owner can read it: it holds what was answered.
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
    """A file is none of these, or was made for another vocabulary."""


class SavedText(msgspec.Struct, frozen=True, array_like=True):
    """Token ids, as little-endian int32."""

    token_ids: bytes
    is_imported: bool


class SavedNamespace(msgspec.Struct, frozen=True):
    """A namespace; its texts from the oldest to the latest."""

    name: str
    texts: list[SavedText]


class SavedStores(msgspec.Struct, frozen=True):
    """A whole file; its namespaces from the least to the most recently used."""

    format: int
    vocabulary: str  # fingerprint: ids mean nothing to another tokenizer
    spaces: list[SavedNamespace]


def save(stores: DraftStores, path: Path, vocabulary: str) -> None:
    """Write all namespaces; raise OSError if that can't be done."""
    spaces = [
        SavedNamespace(name, [_saved(text) for text in space.texts()])
        for name, space in stores.spaces()
    ]
    content = msgspec.msgpack.encode(SavedStores(FORMAT, vocabulary, spaces))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def load(stores: DraftStores, path: Path, vocabulary: str, vocab_size: int) -> None:
    """Add a file's namespaces, as far as there is room; one that isn't there adds none.

    Raises:
        StoreFileError: the file can't be used, and nothing was added.
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
