"""A trie of expected futures: how probable it is at most that a text goes on to a legal end.

The bound of a node is 1 before it is visited. When a text is drawn from there, the legal mass of
the draw is a bound; from then on it is the sum over the legal tokens of probability times the
token's own bound, so what is learnt further down moves up to the root. A token that was taken back
has bound 0.

Law: a bound is never below the probability of a legal end (expected future grammaticality), never
rises, and is exact once everything below the node has been visited.
Source: Park et al., arXiv:2405.21047, section 3 (ASAp); arXiv:2510.01902 (CARS).
Differs: masses of the request's truncated distribution; nothing is stored for unvisited tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log

NODE_BYTES = 400  # measured: an object, its dict, and its entry in the parent's
MAX_BYTES = 16 * 2**20


@dataclass(slots=True, eq=False)
class FutureNode:
    """A text, as far as it has been drawn. Numbers may be floats or fractions."""

    parent: FutureNode | None = None
    prob: float = 1.0  # of its last token, under the base law behind the parent's text
    bound: float = 1.0
    is_known: bool = False  # whether a draw from here has told its legal mass
    children: dict[int, FutureNode] = field(default_factory=dict)

    def learn(self, bound: float) -> None:
        """Lower the bound to this one, if it is higher, and those of the texts before it."""
        lower: float = max(bound, 0)
        node: FutureNode | None = self
        while node is not None and lower < node.bound:
            lost, node.bound = node.prob * (node.bound - lower), lower
            node = node.parent
            if node is None or not node.is_known:
                return
            lower = max(node.bound - lost, 0)

    def visit(self, mass: float) -> None:
        """Note the legal mass of a draw that was made here without factors."""
        if self.is_known:
            return
        known = sum(child.prob * (1 - child.bound) for child in self.children.values())
        self.learn(mass - known)
        self.is_known = True

    def log_factors(self) -> Mapping[int, float]:
        """Return the logs of the bounds of the tokens whose bounds are below 1."""
        return {
            token: log(child.bound) if child.bound > 0 else -inf
            for token, child in self.children.items()
            if child.bound < 1
        }


class FutureTrie:
    """The trie of one prompt under one constraint; at most MAX_BYTES, then it learns no new text.

    Trie and nodes live as long as a request uses them or the engine remembers them.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.root = FutureNode()
        self.num_nodes = 1
        self._max_nodes = max_bytes // NODE_BYTES

    @property
    def num_bytes(self) -> int:
        """Its size, by estimate."""
        return self.num_nodes * NODE_BYTES

    def child(self, node: FutureNode, token: int, prob: float) -> FutureNode:
        """Return the text one token longer; one that nobody will find again if the trie is full."""
        found = node.children.get(token)
        if found is not None:
            return found
        if self.num_nodes >= self._max_nodes:
            return FutureNode()
        made = node.children[token] = FutureNode(node, prob)
        self.num_nodes += 1
        return made
