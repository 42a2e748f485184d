"""Builds draft trees from a table of which tokens follow each pair of tokens.

`best_first` takes the nodes with the highest path probability; `monte_carlo` is the Monte-Carlo
tree search (MCTS) of ADED.
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

TokenPair = tuple[int, int]  # the last two tokens
TokenPath = tuple[int, ...]  # draft tokens, from the end of the text on
# Returns (token, weight) of the successors, heaviest first.
SuccessorLookup = Callable[[TokenPair], Sequence[tuple[int, float]]]

ROOT = -1
MIN_PATH_PROB = 0.01  # nodes below are left out


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """The largest tree."""

    nodes: int
    depth: int


@dataclass(frozen=True, slots=True)
class MctsConfig:
    """The constants of ADED's tree search."""

    iterations: int
    explore: float  # c1
    base: float  # c2
    prefixes: int  # number of paths that are drafted, the most visited ones


def successor_probs(
    lookup: SuccessorLookup, pair: TokenPair, smoothing: float
) -> list[tuple[int, float]]:
    """Return the successors with the estimated probability of each: weight / (sum + smoothing)."""
    found = lookup(pair)
    total = sum(weight for _, weight in found) + smoothing
    return [(token, weight / total) for token, weight in found]


def best_first(
    lookup: SuccessorLookup, pair: TokenPair, bounds: TreeLimits, smoothing: float
) -> Draft:
    """Return the tree of the nodes with the highest path probabilities.

    Law: no path outside the tree, within the depth, has a higher probability than one inside; a
    node comes after its parent. Cost: O(nodes * log(nodes)) plus one lookup a node.
    """
    tokens: list[int] = []
    probs: list[float] = []
    parents: list[int] = []
    depths: list[int] = []
    # -path_prob, order of arrival, parent, pair, acceptance_prob
    heap: list[tuple[float, int, int, TokenPair, float]] = []

    def offer(node: int, pair: TokenPair, path_prob: float) -> None:
        for token, prob in successor_probs(lookup, pair, smoothing):
            if path_prob * prob >= MIN_PATH_PROB:
                heappush(heap, (-path_prob * prob, next(order), node, (pair[1], token), prob))

    order = count()
    offer(ROOT, pair, 1.0)
    while heap and len(tokens) < bounds.nodes:
        path_prob, _, parent, pair, prob = heappop(heap)
        node = len(tokens)
        tokens.append(pair[1])
        probs.append(prob)
        parents.append(parent)
        depths.append(1 if parent == ROOT else depths[parent] + 1)
        if depths[node] < bounds.depth:
            offer(node, pair, -path_prob)
    return Draft(tokens, probs, parents)


@dataclass(slots=True, eq=False)
class MctsNode:
    """A node of the search tree: one path behind the text."""

    path: TokenPath
    pair: TokenPair
    weight: float  # of the last edge
    parent: MctsNode | None = None
    children: list[MctsNode] = field(default_factory=list)
    visits: int = 0
    score: float = 0.0  # sum over the visits


def grow_mcts_tree(
    lookup: SuccessorLookup, pair: TokenPair, depth: int, how: MctsConfig, random: Random
) -> MctsNode:
    """Return the root of the tree that Monte-Carlo tree search builds.

    Law: the root is visited once an iteration; every node as often as its children plus the
    roll-outs that began at it; no path is longer than the depth.
    """
    root = MctsNode((), pair, 0.0)
    for _ in range(how.iterations):
        node = root
        while node.children:
            node = max(node.children, key=lambda each: _priority(each, how))
        if len(node.path) < depth:
            node.children = [
                MctsNode((*node.path, token), (node.pair[1], token), weight, node)
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
    lookup: SuccessorLookup, pair: TokenPair, bounds: TreeLimits, how: MctsConfig, random: Random
) -> list[TokenPath]:
    """Return the paths that ADED drafts: the most visited ones, each with its best next token."""
    nodes = [
        node
        for node in _below(grow_mcts_tree(lookup, pair, bounds.depth, how, random))
        if node.visits
    ]
    nodes.sort(key=lambda node: -node.visits)
    paths: dict[TokenPath, None] = {}
    for node in nodes[: how.prefixes]:
        best = lookup(node.pair)[:1]
        paths[(*node.path, *(token for token, _ in best))] = None
    return prune_paths(list(paths), bounds.nodes)


def prune_paths(paths: list[TokenPath], max_nodes: int) -> list[TokenPath]:
    """Remove paths until their tree has at most max_nodes nodes; return the others.

    The path with the most nodes that no other path shares is removed first; of equals, the last.
    """
    kept = list(paths)
    shared = Counter(prefix for path in kept for prefix in _prefixes(path))
    while len(shared) > max_nodes:
        own = [sum(shared[prefix] == 1 for prefix in _prefixes(path)) for path in kept]
        worst = max(range(len(kept)), key=lambda i: (own[i], i))
        shared -= Counter(_prefixes(kept.pop(worst)))
    return kept


def paths_to_draft(
    lookup: SuccessorLookup, pair: TokenPair, paths: Iterable[TokenPath], smoothing: float
) -> Draft:
    """Return the tree of some paths that follow a pair of tokens."""
    nodes: dict[TokenPath, int] = {(): ROOT}
    found: list[float] = []
    for path in paths:
        for prefix in _prefixes(path):
            if prefix not in nodes:
                nodes[prefix] = len(found)
                before = (*pair, *prefix)[-3:-1]
                found.append(
                    dict(successor_probs(lookup, (before[0], before[1]), smoothing))[prefix[-1]]
                )
    drafted = list(nodes)[1:]
    parents = [nodes[each[:-1]] for each in drafted]
    return Draft([each[-1] for each in drafted], found, parents)


def _priority(node: MctsNode, how: MctsConfig) -> float:
    """Return the upper confidence bound of a child; a node without visits comes first."""
    if not node.visits:
        return inf
    assert node.parent is not None
    above = node.parent.visits
    rate = how.explore + log((above + how.base + 1) / how.base)
    return node.score / node.visits + rate * node.weight * sqrt(above) / (1 + node.visits)


def _roll_out(lookup: SuccessorLookup, node: MctsNode, depth: int, random: Random) -> float:
    """Return 1 plus the weights of the path to a node, continued at random to the full depth."""
    reward, pair, length = 1.0, node.pair, len(node.path)
    above: MctsNode | None = node
    while above is not None:
        reward += above.weight
        above = above.parent
    while length < depth and (found := lookup(pair)):
        ((token, weight),) = random.choices(found, [weight for _, weight in found])
        reward += weight
        pair, length = (pair[1], token), length + 1
    return reward


def _below(node: MctsNode) -> Iterable[MctsNode]:
    for child in node.children:
        yield child
        yield from _below(child)


def _prefixes(path: TokenPath) -> Iterable[TokenPath]:
    return (path[:stop] for stop in range(1, len(path) + 1))
