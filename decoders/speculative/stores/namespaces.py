"""Namespaces: the earlier texts that drafters may use, separate for each tenant.

A namespace keeps a log of texts, whose oldest texts are evicted, and the indexes that drafters read
instead of the log. An index reads the log at a bounded pace, so a large import delays no step. The
least recently used namespaces are evicted.

What is stored here is shared by requests and outlives them, so it is not part of the state of a
sequence: forks and truncated sequences leave it as it is.

Law: nothing learnt in one namespace is visible in another. Tokens kept <= max_tokens a namespace,
namespaces <= max_namespaces. Drafts change no text, only its speed; but speed tells what a
namespace holds, so namespaces are those of the prefix cache.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

MAX_TEXT = 1024  # tokens; longer texts are stored in parts
READ_PACE = 512  # tokens that an index reads in one call, then to the end of the text
MIN_TEXT = 3  # tokens; shorter texts teach nothing


class TextIndex(Protocol):
    """An index of texts, which bounds its own memory."""

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Add one text of at most MAX_TEXT tokens."""


AnyTextIndex = TypeVar("AnyTextIndex", bound=TextIndex)


@dataclass(frozen=True, slots=True)
class StoredText:
    """Tokens of an output or of an imported text."""

    token_ids: array[int]
    is_imported: bool


@dataclass(slots=True)
class _IndexCursor:
    """An index, and the number of the next text that it reads."""

    index: TextIndex
    at: int


class Namespace:
    """The texts and indexes of one tenant."""

    def __init__(self, max_tokens: int) -> None:
        self.num_tokens = 0  # in the log
        self.num_dropped = 0  # tokens evicted from it
        self._max_tokens = max_tokens
        self._texts: deque[StoredText] = deque()
        self._first = 0  # number of the oldest text in the log
        self._readers: dict[str, _IndexCursor] = {}

    def add(self, token_ids: Sequence[int], *, is_imported: bool = False) -> int:
        """Add a text; return how many of its tokens are kept."""
        kept = token_ids[-self._max_tokens :]
        if len(kept) < MIN_TEXT:
            return 0
        for start in range(0, len(kept), MAX_TEXT):
            self._texts.append(StoredText(array("i", kept[start : start + MAX_TEXT]), is_imported))
        self.num_tokens += len(kept)
        while self.num_tokens > self._max_tokens:
            dropped = len(self._texts.popleft().token_ids)
            self.num_tokens -= dropped
            self.num_dropped += dropped
            self._first += 1
        return len(kept)

    def index(self, name: str, make: Callable[[int], AnyTextIndex]) -> AnyTextIndex:
        """Return the index with this name after it has read some more of the log.

        make: builds a new index for max_tokens, if there is none yet.
        """
        reader = self._readers.get(name)
        if reader is None:
            reader = self._readers[name] = _IndexCursor(make(self._max_tokens), self._first)
        reader.at = max(reader.at, self._first)
        left = READ_PACE
        while left > 0 and reader.at < self._first + len(self._texts):
            text = self._texts[reader.at - self._first]
            reader.index.read(text.token_ids, is_imported=text.is_imported)
            reader.at += 1
            left -= len(text.token_ids)
        return cast(AnyTextIndex, reader.index)

    def texts(self) -> Iterator[StoredText]:
        """Return the texts in the log, oldest first."""
        return iter(self._texts)


@dataclass(slots=True)
class StoreCounters:
    """Totals since the start, over all namespaces."""

    tokens_added: int = 0
    tokens_dropped: int = 0  # including those of evicted namespaces
    namespaces_dropped: int = 0


@dataclass(slots=True)
class DraftStores:
    """The namespaces of one worker."""

    max_tokens: int = 2**16  # of one namespace; 0: the stores are off
    max_namespaces: int = 16
    counters: StoreCounters = field(default_factory=StoreCounters)
    _spaces: OrderedDict[str, Namespace] = field(default_factory=OrderedDict)

    def find(self, name: str) -> Namespace | None:
        """Return a namespace, if it exists."""
        space = self._spaces.get(name)
        if space is not None:
            self._spaces.move_to_end(name)
        return space

    def open(self, name: str) -> Namespace | None:
        """Return a namespace, created if it is new; None: the stores are off."""
        if self.max_tokens == 0:
            return None
        space = self.find(name)
        if space is None:
            space = self._spaces[name] = Namespace(self.max_tokens)
            while len(self._spaces) > self.max_namespaces:
                _, dropped = self._spaces.popitem(last=False)
                self.counters.namespaces_dropped += 1
                self.counters.tokens_dropped += dropped.num_tokens
        return space

    def add(self, name: str, token_ids: Sequence[int], *, is_imported: bool = False) -> int:
        """Add a text to a namespace; return how many of its tokens are kept."""
        space = self.open(name) if len(token_ids) >= MIN_TEXT else None
        if space is None:
            return 0
        before = space.num_dropped
        kept = space.add(token_ids, is_imported=is_imported)
        self.counters.tokens_added += kept
        self.counters.tokens_dropped += space.num_dropped - before
        return kept

    def clear(self, name: str | None = None) -> int:
        """Delete a namespace, or all (None); return how many tokens it held."""
        names = list(self._spaces) if name is None else [name]
        gone = [space for each in names if (space := self._spaces.pop(each, None)) is not None]
        return sum(space.num_tokens for space in gone)

    def spaces(self) -> Iterator[tuple[str, Namespace]]:
        """Return (name, namespace) of all, from the least to the most recently used."""
        return iter(self._spaces.items())
