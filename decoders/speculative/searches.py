"""Searches for a draft tree through what a store of pairs says of their successors.

`best_first` takes the nodes of the greatest survival; `monte_carlo` is the search of ADED.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf, log, sqrt
from random import Random

from plait.decoders.contract.drafter import Draft

Pair = tuple[int, int]  # the last two tokens
Path = tuple[int, ...]  # tokens behind the text
Lookup = Callable[[Pair], Sequence[tuple[int, float]]]  # (token, weight), heaviest first

ROOT = -1
LEAST = 0.01  # survival below which a node is worth nobody's while


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a tree may become."""

    nodes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Climb:
    """The constants of ADED's search."""

    iterations: int
    explore: float  # c1
    base: float  # c2
    prefixes: int  # the most visited ones, which are drafted


def chances(lookup: Lookup, pair: Pair, smoothing: float) -> list[tuple[int, float]]:
    """Return the successors with the estimated probability of each: weight / (sum + smoothing)."""
    found = lookup(pair)
    total = sum(weight for _, weight in found) + smoothing
    return [(token, weight / total) for token, weight in found]


def best_first(lookup: Lookup, pair: Pair, bounds: Bounds, smoothing: float) -> Draft:
    """Return the tree of the nodes of the greatest survival, the product of chances on the way.

    Law: no path outside of the tree, within the depth, has a greater survival than one in it; a
    node comes after its parent. Cost: O(nodes * log(nodes)) beside the lookups.
    """
    tokens: list[int] = []
    found: list[float] = []
    parents: list[int] = []
    depths: list[int] = []
    heap: list[tuple[float, int, int, Pair, float]] = []  # -survival, order, parent, pair, chance

    def offer(node: int, pair: Pair, survival: float) -> None:
        for token, chance in chances(lookup, pair, smoothing):
            if survival * chance >= LEAST:
                entry = (-survival * chance, next(order), node, (pair[1], token), chance)
                heappush(heap, entry)

    order = count()
    offer(ROOT, pair, 1.0)
    while heap and len(tokens) < bounds.nodes:
        survival, _, parent, pair, chance = heappop(heap)
        node = len(tokens)
        tokens.append(pair[1])
        found.append(chance)
        parents.append(parent)
        depths.append(1 if parent == ROOT else depths[parent] + 1)
        if depths[node] < bounds.depth:
            offer(node, pair, -survival)
    return Draft(tokens, found, parents)


@dataclass(slots=True, eq=False)
class Node:
    """A path that the climb has considered."""

    path: Path
    pair: Pair
    weight: float  # of the last edge
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    score: float = 0.0  # sum over the visits


def climb(lookup: Lookup, pair: Pair, depth: int, how: Climb, random: Random) -> Node:
    """Return the root of the tree that Monte-Carlo search has grown.

    Law: the root is visited once an iteration; every node as often as its children and the
    roll-outs that began at it; no path is longer than the depth.
    """
    root = Node((), pair, 0.0)
    for _ in range(how.iterations):
        node = root
        while node.children:
            node = max(node.children, key=lambda each: _priority(each, how))
        if len(node.path) < depth:
            node.children = [
                Node((*node.path, token), (node.pair[1], token), weight, node)
                for token, weight in lookup(node.pair)
            ]
            node = node.children[-1] if node.children else node
        reward = _roll_out(lookup, node, depth, random)
        while True:
            node.visits += 1
            node.score += reward
            if node.parent is None:
                break
            node = node.parent
    return root


def monte_carlo(
    lookup: Lookup, pair: Pair, bounds: Bounds, how: Climb, random: Random
) -> list[Path]:
    """Return the paths that ADED drafts: the most visited ones, each with its best next token."""
    nodes = [node for node in _below(climb(lookup, pair, bounds.depth, how, random)) if node.visits]
    nodes.sort(key=lambda node: -node.visits)
    paths: dict[Path, None] = {}
    for node in nodes[: how.prefixes]:
        best = lookup(node.pair)[:1]
        paths[(*node.path, *(token for token, _ in best))] = None
    return fitting(list(paths), bounds.nodes)


def fitting(paths: list[Path], max_nodes: int) -> list[Path]:
    """Return the paths that are left when their tree has at most max_nodes nodes.

    What goes first is the path with the most nodes that no other one shares; of equals the last.
    """
    kept = list(paths)
    shared = Counter(prefix for path in kept for prefix in _prefixes(path))
    while len(shared) > max_nodes:
        own = [sum(shared[prefix] == 1 for prefix in _prefixes(path)) for path in kept]
        worst = max(range(len(kept)), key=lambda i: (own[i], i))
        shared -= Counter(_prefixes(kept.pop(worst)))
    return kept


def merged(lookup: Lookup, pair: Pair, paths: Iterable[Path], smoothing: float) -> Draft:
    """Return the tree of some paths behind a pair of tokens."""
    nodes: dict[Path, int] = {(): ROOT}
    found: list[float] = []
    for path in paths:
        for prefix in _prefixes(path):
            if prefix not in nodes:
                nodes[prefix] = len(found)
                before = (*pair, *prefix)[-3:-1]
                found.append(dict(chances(lookup, (before[0], before[1]), smoothing))[prefix[-1]])
    drafted = list(nodes)[1:]
    parents = [nodes[each[:-1]] for each in drafted]
    return Draft([each[-1] for each in drafted], found, parents)


def _priority(node: Node, how: Climb) -> float:
    """Return by how much a child is to be preferred; one without visits above all."""
    if not node.visits:
        return inf
    assert node.parent is not None
    above = node.parent.visits
    rate = how.explore + log((above + how.base + 1) / how.base)
    return node.score / node.visits + rate * node.weight * sqrt(above) / (1 + node.visits)


def _roll_out(lookup: Lookup, node: Node, depth: int, random: Random) -> float:
    """Return 1 and the weights on the way to a node and on, at random, to the full depth."""
    reward, pair, length = 1.0, node.pair, len(node.path)
    above: Node | None = node
    while above is not None:
        reward += above.weight
        above = above.parent
    while length < depth and (found := lookup(pair)):
        ((token, weight),) = random.choices(found, [weight for _, weight in found])
        reward += weight
        pair, length = (pair[1], token), length + 1
    return reward


def _below(node: Node) -> Iterable[Node]:
    for child in node.children:
        yield child
        yield from _below(child)


def _prefixes(path: Path) -> Iterable[Path]:
    return (path[:stop] for stop in range(1, len(path) + 1))
