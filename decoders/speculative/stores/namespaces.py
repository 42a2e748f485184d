"""Namespaces: the earlier texts that drafters may go by, each tenant's apart from the others'.

A namespace keeps a log of texts, the oldest of which make room for new ones, and the indexes that
drafters read instead of the log. An index follows the log at its own pace, so that a large import
holds up no step. Namespaces that nobody has used for longest make room for new ones.

Law: nothing that is learnt in one namespace shows in another. Tokens kept <= max_tokens a
namespace, namespaces <= max_namespaces. Drafts change no text, so what is kept is only a matter of
speed; but time tells what has been kept, hence the namespaces (as those of the prefix cache).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

MAX_TEXT = 1024  # tokens that an index reads at once; longer texts are kept in parts
READ_PACE = 512  # tokens that an index reads when it is asked for; of one text more, to its end
MIN_TEXT = 3  # tokens of which something can be learnt


class TextIndex(Protocol):
    """Something made of texts, bounded by itself."""

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Take in one text, of at most MAX_TEXT tokens."""


AnyTextIndex = TypeVar("AnyTextIndex", bound=TextIndex)


@dataclass(frozen=True, slots=True)
class StoredText:
    """Tokens that were emitted, or imported by somebody who expects them."""

    token_ids: array[int]
    is_imported: bool


@dataclass(slots=True)
class _IndexCursor:
    """An index and the number of the next text that it reads."""

    index: TextIndex
    at: int


class Namespace:
    """What one tenant's drafters go by."""

    def __init__(self, max_tokens: int) -> None:
        self.num_tokens = 0  # in the log
        self.num_dropped = 0  # tokens that have left it
        self._max_tokens = max_tokens
        self._texts: deque[StoredText] = deque()
        self._first = 0  # number of the oldest text that is left
        self._readers: dict[str, _IndexCursor] = {}

    def add(self, token_ids: Sequence[int], *, is_imported: bool = False) -> int:
        """Keep a text; return how many of its tokens are kept."""
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
        """Return the index of a name, made of max_tokens if it is new, and let it read on."""
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
        """Return the texts that are kept, the oldest first."""
        return iter(self._texts)


@dataclass(slots=True)
class StoreCounters:
    """Since the start, over all namespaces."""

    tokens_added: int = 0
    tokens_dropped: int = 0  # with those of namespaces that were dropped
    namespaces_dropped: int = 0


@dataclass(slots=True)
class DraftStores:
    """The namespaces of one worker."""

    max_tokens: int = 2**16  # of one namespace; 0: nothing is kept
    max_namespaces: int = 16
    counters: StoreCounters = field(default_factory=StoreCounters)
    _spaces: OrderedDict[str, Namespace] = field(default_factory=OrderedDict)

    def find(self, name: str) -> Namespace | None:
        """Return a namespace if there is something in it."""
        space = self._spaces.get(name)
        if space is not None:
            self._spaces.move_to_end(name)
        return space

    def open(self, name: str) -> Namespace | None:
        """Return a namespace, a new one if need be; None: nothing is kept here."""
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
        """Keep a text in a namespace; return how many of its tokens are kept."""
        space = self.open(name) if len(token_ids) >= MIN_TEXT else None
        if space is None:
            return 0
        before = space.num_dropped
        kept = space.add(token_ids, is_imported=is_imported)
        self.counters.tokens_added += kept
        self.counters.tokens_dropped += space.num_dropped - before
        return kept

    def clear(self, name: str | None = None) -> int:
        """Forget a namespace, or all (None); return how many tokens were kept there."""
        names = list(self._spaces) if name is None else [name]
        gone = [space for each in names if (space := self._spaces.pop(each, None)) is not None]
        return sum(space.num_tokens for space in gone)

    def spaces(self) -> Iterator[tuple[str, Namespace]]:
        """Return the namespaces by name, the one used last at the end."""
        return iter(self._spaces.items())
