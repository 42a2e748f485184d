"""Whether a text with gaps can be filled to a text of a grammar, and the shortest filling.

The text is an automaton in a line: each of its positions is left by a given byte, by any byte, or
by a token of the vocabulary; at some positions any number of bytes or tokens may be inserted. The
grammar is a `Network`. Saturation derives every triple (state of the network, position where its
nonterminal was entered, position) that can be reached from the start, cheapest first, until the
root ends at the last position.

Source: intersection of a context-free grammar with a regular language (Bar-Hillel, Perles and
Shamir 1961) by saturation, as Mündler et al. 2025, arXiv:2508.10111, section 4.3; the order is that
of Knuth 1977 (a generalisation of Dijkstra's algorithm). Differences: triples are made top-down, so
that only those are made that some beginning of the text reaches; and the filling that is found has
the fewest inserted bytes, by their costs.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from plait.kernels.grammar import extension_or_none
from plait.kernels.grammar.network import EdgeKind, Network

if TYPE_CHECKING:
    from plait.kernels.grammar.reference import ReferenceVocabulary

ANY_BYTE, TOKEN, TOKEN_OR_NOTHING = 256, 257, 258  # what leaves a position, beside given bytes
NOTHING, BYTES, TOKENS = 0, 1, 2  # what is inserted at a position
MAX_ITEMS = 2_000_000  # triples of one question, about 100 MB


class Found(IntEnum):
    """How a saturation has ended."""

    EMPTY = 0  # no filling gives a text of the grammar
    FILLED = 1
    LIMIT = 2  # unknown: it would take too many triples


Filling = tuple[int, list[tuple[int, int]]]  # Found, and (position, byte) in the order of the text


class Saturation(Protocol):
    """Answers questions about one network. Used by one thread at a time."""

    def fill(self, leave: Sequence[int], loops: Sequence[int], max_items: int) -> Filling:
        """Return whether there is a filling, and one of the least cost.

        Law: FILLED exactly if a text of the network's language is a filling; its cost is the least.
        A byte that replaces ANY_BYTE costs one less than one that is inserted, a token that is
        inserted costs one, and a token that leaves a position nothing.

        Args:
            leave: [n] the byte that leaves each position, or ANY_BYTE, TOKEN, TOKEN_OR_NOTHING.
            loops: [n + 1] NOTHING, BYTES or TOKENS: what may be inserted at the position, NOTHING
                where a token leaves it.
            max_items: most triples; beyond, the result is LIMIT.
        """


def make_saturation(
    network: Network, byte_costs: Sequence[int], vocabulary: Any = None
) -> Saturation:
    """Return the compiled saturation, or the reference without compiled kernels.

    Args:
        network: the grammar.
        byte_costs: [256] of filled-in bytes; 0: never filled in.
        vocabulary: of plait.kernels.grammar.make_vocabulary; None: no position is left by a token.
    """
    module = extension_or_none()
    if module is None:
        return ReferenceSaturation(network, byte_costs, vocabulary)
    made: Saturation = module.Saturation(
        network.edges,
        network.num_states,
        network.starts,
        network.finals,
        network.sets,
        network.root,
        byte_costs,
        vocabulary,
    )
    return made


Place = tuple[int, bytes]  # position, and the bytes of a token that have been read behind it
Key = tuple[int, Place, Place]  # state, place where its nonterminal was entered, place


@dataclass(slots=True)
class _Item:
    """The cheapest way to a triple: from the item `before` by a byte, a call or nothing."""

    cost: int
    before: Key | None
    callee: Key | None = None
    byte: int = -1  # filled in; -1: given, or none
    is_settled: bool = False


@dataclass(slots=True)
class _Call:
    """A nonterminal entered at a position: who waits for its ends, and those found."""

    waiting: list[tuple[Key, int]] = field(default_factory=list)  # with the state behind the call
    ends: list[Key] = field(default_factory=list)


class ReferenceSaturation:
    """See `Saturation`: the test oracle of the C++, and what serves without a compiler."""

    def __init__(
        self,
        network: Network,
        byte_costs: Sequence[int],
        vocabulary: ReferenceVocabulary | None = None,
    ) -> None:
        self._network, self._costs = network, byte_costs
        self._tokens = set(vocabulary.token_of) if vocabulary is not None else set()
        self._beginnings = {text[:n] for text in self._tokens for n in range(1, len(text))}
        self._edges: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for state, *edge in network.edges:
            self._edges[state].append((edge[0], edge[1], edge[2]))
        self._final_of = {state: number for number, state in enumerate(network.finals)}
        usable = [[b for b in members if byte_costs[b]] for members in network.sets]
        self._best = [min(own, key=lambda b: (byte_costs[b], b), default=-1) for own in usable]

    def fill(self, leave: Sequence[int], loops: Sequence[int], max_items: int) -> Filling:
        """See the protocol."""
        return _Question(self, leave, loops).answer(max_items)


class _Question:
    """One saturation."""

    def __init__(
        self, owner: ReferenceSaturation, leave: Sequence[int], loops: Sequence[int]
    ) -> None:
        self._owner, self._leave, self._loops = owner, leave, loops
        self._items: dict[Key, _Item] = {}
        self._calls: dict[tuple[int, Place], _Call] = {}
        self._heap: list[tuple[int, int, Key]] = []

    def answer(self, max_items: int) -> Filling:
        network = self._owner._network
        first = (0, b"")
        goal = (network.finals[network.root], first, (len(self._leave), b""))
        self._calls[network.root, first] = _Call()
        self._push((network.starts[network.root], first, first), _Item(0, None))
        while self._heap and len(self._items) <= max_items:
            cost, _, key = heapq.heappop(self._heap)
            item = self._items[key]
            if item.is_settled or item.cost != cost:
                continue
            item.is_settled = True
            if key == goal:
                return Found.FILLED, self._filling(key)
            self._complete(key, cost)
            for kind, value, target in self._owner._edges.get(key[0], ()):
                self._follow(key, cost, (kind, value, target))
            at = key[2][0]
            if at < len(self._leave) and self._leave[at] == TOKEN_OR_NOTHING and not key[2][1]:
                self._push((key[0], key[1], (at + 1, b"")), _Item(cost, key))
        return (Found.LIMIT if len(self._items) > max_items else Found.EMPTY), []

    def _push(self, key: Key, item: _Item) -> None:
        known = self._items.get(key)
        if known is None or (not known.is_settled and item.cost < known.cost):
            self._items[key] = item
            heapq.heappush(self._heap, (item.cost, -len(self._heap), key))

    def _complete(self, key: Key, cost: int) -> None:
        """Go on behind the calls of a nonterminal that has ended."""
        state, origin, at = key
        number = self._owner._final_of.get(state)
        if number is None:
            return
        call = self._calls[number, origin]
        call.ends.append(key)
        for caller, target in call.waiting:
            made = _Item(self._items[caller].cost + cost, caller, key)
            self._push((target, caller[1], at), made)

    def _follow(self, key: Key, cost: int, edge: tuple[int, int, int]) -> None:
        kind, value, target = edge
        _, origin, at = key
        if kind == EdgeKind.EMPTY:
            self._push((target, origin, at), _Item(cost, key))
        elif kind == EdgeKind.BYTES:
            self._read(key, cost, value, target)
        else:
            call = self._calls.setdefault((value, at), _Call())
            call.waiting.append((key, target))
            self._push((self._owner._network.starts[value], at, at), _Item(0, None))
            for end in call.ends:
                made = _Item(cost + self._items[end].cost, key, end)
                self._push((target, origin, end[2]), made)

    def _read(self, key: Key, cost: int, number: int, target: int) -> None:
        _, origin, (at, read) = key
        best = self._owner._best[number]
        price = self._owner._costs[best] if best >= 0 else 0
        given = self._leave[at] if at < len(self._leave) else -1
        behind = (at + 1, b"")
        if read and self._loops[at] == TOKENS:
            given = -1  # that leaves the position, but not the token
        if given in (TOKEN, TOKEN_OR_NOTHING):
            for byte in self._owner._network.sets[number]:
                self._read_token(key, cost, byte, target)
        elif given == ANY_BYTE and best >= 0:
            self._push((target, origin, behind), _Item(cost + price - 1, key, None, best))
        elif 0 <= given < ANY_BYTE and given in self._owner._network.sets[number]:
            self._push((target, origin, behind), _Item(cost, key))
        if self._loops[at] == TOKENS:
            for byte in self._owner._network.sets[number]:
                self._read_token(key, cost, byte, target)
        elif self._loops[at] == BYTES and best >= 0:
            self._push((target, origin, (at, b"")), _Item(cost + price, key, None, best))

    def _read_token(self, key: Key, cost: int, byte: int, target: int) -> None:
        """Go on with a byte of a token."""
        _, origin, (at, read) = key
        text, is_inserted = read + bytes([byte]), self._loops[at] == TOKENS
        cost += is_inserted and not read
        if text in self._owner._beginnings:
            self._push((target, origin, (at, text)), _Item(cost, key, None, byte))
        if text in self._owner._tokens:
            behind = (at if is_inserted else at + 1, b"")
            self._push((target, origin, behind), _Item(cost, key, None, byte))

    def _filling(self, key: Key) -> list[tuple[int, int]]:
        """Return what was filled in on the way to an item, read from its end."""
        found: list[tuple[int, int]] = []
        todo: list[Key | None] = [key]
        while todo:
            at = todo.pop()
            while at is not None:
                item = self._items[at]
                if item.byte >= 0:
                    assert item.before is not None
                    found.append((item.before[2][0], item.byte))
                if item.callee is not None:
                    todo.append(item.before)
                    at = item.callee
                else:
                    at = item.before
        return found[::-1]
