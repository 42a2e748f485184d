"""Draft stores: bounds, namespaces, the file."""

from __future__ import annotations

import pickle
import stat
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.speculative.stores.files import StoreFileError, load, save
from plait.decoders.speculative.stores.namespaces import MAX_TEXT, READ_PACE, DraftStores, Namespace
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.models.fingerprint import vocabulary_fingerprint
from plait.server.wire.messages import DraftStoreReport, DraftStoreTask


class Reading:
    """An index that remembers what it has read."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.texts: list[tuple[list[int], bool]] = []

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        self.texts.append((list(token_ids), is_imported))


def kept(space: Namespace | None) -> list[list[int]]:
    return [] if space is None else [list(text.token_ids) for text in space.texts()]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_a_namespace_keeps_the_latest_tokens(lengths: list[int], max_tokens: int) -> None:
    stores = DraftStores(max_tokens=max_tokens)
    for number, length in enumerate(lengths):
        stores.add("a", [number] * length)
        space = stores.find("a")
        assert space is None or space.num_tokens == sum(map(len, kept(space))) <= max_tokens
    counters = stores.counters
    assert counters.tokens_added - counters.tokens_dropped == sum(map(len, kept(stores.find("a"))))
    if lengths and 3 <= lengths[-1] <= max_tokens:
        assert kept(stores.find("a"))[-1] == [len(lengths) - 1] * lengths[-1]


def test_namespaces_are_bounded_and_the_longest_unused_goes() -> None:
    stores = DraftStores(max_namespaces=2)
    for name in ("a", "b"):
        stores.add(name, [1, 2, 3])
    assert stores.find("a") is not None
    stores.add("c", [1, 2, 3])
    assert [name for name, _ in stores.spaces()] == ["a", "c"]
    assert (stores.counters.namespaces_dropped, stores.counters.tokens_dropped) == (1, 3)
    assert stores.find("b") is None
    assert len(list(stores.spaces())) == 2  # looking makes none


def test_nothing_is_kept_where_nothing_may_be() -> None:
    stores = DraftStores(max_tokens=0)
    assert stores.add("a", [1, 2, 3]) == 0
    assert stores.open("a") is None
    assert DraftStores().add("a", [1, 2]) == 0  # too short to learn from


def test_clearing_forgets_one_or_all() -> None:
    stores = DraftStores()
    for name in ("a", "b", "c"):
        stores.add(name, [1, 2, 3])
    assert stores.clear("a") == 3
    assert stores.clear("a") == 0
    assert [name for name, _ in stores.spaces()] == ["b", "c"]
    assert stores.clear() == 6
    assert not list(stores.spaces())


def test_an_index_reads_everything_once_at_its_pace() -> None:
    space = Namespace(100_000)
    space.add(list(range(5_000)), is_imported=True)
    space.add([7, 8, 9])
    read: list[int] = []
    while True:
        index = space.index("reading", Reading)
        new = [token for tokens, _ in index.texts for token in tokens][len(read) :]
        assert len(new) <= READ_PACE + MAX_TEXT
        if not new:
            break
        read += new
    assert read == [*range(5_000), 7, 8, 9]
    assert [is_imported for _, is_imported in index.texts] == [True] * 5 + [False]
    assert index.max_tokens == 100_000
    space.add([4, 5, 6])
    assert space.index("reading", Reading).texts[-1] == ([4, 5, 6], False)


def test_an_index_skips_what_was_dropped_before_it_came_to_it() -> None:
    space = Namespace(10)
    space.index("reading", Reading)
    for number in range(6):
        space.add([number] * 5)
    index = space.index("reading", Reading)
    assert [tokens[0] for tokens, _ in index.texts] == [4, 5]


def filled() -> DraftStores:
    stores = DraftStores()
    stores.add("a", [1, 2, 3])
    stores.add("b", list(range(3_000)), is_imported=True)
    stores.add("a", [4, 5, 2**20])
    return stores


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "m.drafts"
    save(filled(), path, "v")
    save(filled(), path, "v")  # over the old one
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["m.drafts"]
    have = DraftStores()
    load(have, path, "v", 2**20 + 1)
    assert [name for name, _ in have.spaces()] == [name for name, _ in filled().spaces()]
    for (_, space), (_, want) in zip(have.spaces(), filled().spaces(), strict=True):
        assert list(space.texts()) == list(want.texts())


def test_a_file_is_held_to_todays_bounds(tmp_path: Path) -> None:
    save(filled(), tmp_path / "f", "v")
    have = DraftStores(max_tokens=100, max_namespaces=1)
    load(have, tmp_path / "f", "v", 2**20 + 1)
    assert [(name, space.num_tokens) for name, space in have.spaces()] == [("a", 6)]


def bad_files(path: Path) -> list[tuple[bytes, str]]:
    saved = msgspec.msgpack.decode(path.read_bytes())
    return [
        (b"", "no draft store"),
        (path.read_bytes()[:-5], "no draft store"),
        (pickle.dumps({"a": [1]}), "no draft store"),
        (msgspec.msgpack.encode(saved | {"spaces": 3}), "no draft store"),
        (msgspec.msgpack.encode(saved | {"format": 99}), "format 99"),
        (msgspec.msgpack.encode(saved | {"vocabulary": "w"}), "another tokenizer"),
        (
            msgspec.msgpack.encode(
                saved | {"spaces": [{"name": "a", "texts": [(b"\xff\xff\xff\xff" * 3, False)]}]}
            ),
            "outside of the vocabulary",
        ),
    ]


def test_what_is_no_file_of_this_vocabulary_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save(filled(), path, "v")
    for content, why in bad_files(path):
        path.write_bytes(content)
        have = DraftStores()
        with pytest.raises(StoreFileError, match=why):
            load(have, path, "v", 2**20 + 1)
        assert not list(have.spaces())


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    save(filled(), tmp_path / "f", "v")
    with pytest.raises(StoreFileError, match="outside"):
        load(DraftStores(), tmp_path / "f", "v", 2**20)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    save(filled(), path, "v")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        save(DraftStores(), path, "v")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def keeper(path: Path | None, vocabulary: str = "v", vocab_size: int = 100) -> StoreKeeper:
    return StoreKeeper(path=path, vocab_size=vocab_size, vocabulary=lambda: vocabulary)


def test_a_keeper_does_what_it_is_asked_for() -> None:
    made = keeper(None)
    done = made.handle(DraftStoreTask("t", "import", "a", [[1, 2, 3], [4, 5, 6, 7]]))
    assert done == DraftStoreReport("t", affected=7, tokens=7, max_tokens=2**16)
    space = made.stores.find("a")
    assert space is not None and all(text.is_imported for text in space.texts())
    assert made.handle(DraftStoreTask("t", "inspect", "b")).tokens == 0
    assert made.handle(DraftStoreTask("t", "clear", "b")).affected == 0
    assert made.handle(DraftStoreTask("t", "inspect", "a")).tokens == 7
    assert made.handle(DraftStoreTask("t", "clear", everywhere=True)).affected == 7
    assert made.counters().tokens_added == 7


def test_saving_needs_a_folder_and_a_disk(tmp_path: Path) -> None:
    refused = keeper(None).handle(DraftStoreTask("t", "save")).failed
    assert refused is not None and (refused.error, refused.request_id) == ("BadRequest", "t")
    (tmp_path / "file").write_text("not a folder")
    failed = keeper(tmp_path / "file" / "f").handle(DraftStoreTask("t", "save")).failed
    assert failed is not None and failed.error == "Unavailable"


def test_what_is_cleared_does_not_come_back(tmp_path: Path) -> None:
    made = keeper(tmp_path / "f")
    made.handle(DraftStoreTask("t", "import", "a", [[1, 2, 3]]))
    made.handle(DraftStoreTask("t", "import", "b", [[4, 5, 6]]))
    assert made.handle(DraftStoreTask("t", "save", "a")).affected == 3
    assert kept(keeper(tmp_path / "f").stores.find("a")) == [[1, 2, 3]]
    made.handle(DraftStoreTask("t", "clear", "a"))
    again = keeper(tmp_path / "f").stores
    assert [name for name, _ in again.spaces()] == ["b"]


def test_another_tokenizers_file_is_left_alone(tmp_path: Path) -> None:
    made = keeper(tmp_path / "f")
    made.stores.add("a", array("i", [1, 2, 3]))
    assert made.save()
    content = (tmp_path / "f").read_bytes()
    for other in (keeper(tmp_path / "f", vocabulary="w"), keeper(tmp_path / "f", vocab_size=3)):
        assert not list(other.stores.spaces())
        other.handle(DraftStoreTask("t", "import", "a", [[1, 1, 1]]))
        assert not other.save()
        failed = other.handle(DraftStoreTask("t", "save")).failed
        assert failed is not None and failed.error == "Unavailable"
        assert other.handle(DraftStoreTask("t", "clear", "a")).affected == 3
        assert (tmp_path / "f").read_bytes() == content


def test_vocabularies_have_fingerprints() -> None:
    names = [[b"a", b"b"], [b"b", b"a"], [b"ab"], [b"a", b"b", b""]]
    assert len({vocabulary_fingerprint(each) for each in names}) == len(names)
