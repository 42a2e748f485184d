"""Stop strings in streamed text.

A stop string ends the text where its first match is complete; of two that are complete at the same
character, the longer counts. The result depends neither on how the text is split nor on what
follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _TrieNode:
    """A prefix of some stop string."""

    depth: int  # its length
    stop: str | None = None  # the longest stop string that ends here
    next: dict[str, int] = field(default_factory=dict)
    fallback: int = 0  # node of its longest proper suffix that is a prefix of a stop string


class StopStrings:
    """The stop strings of one request, as an automaton that its sequences share.

    Source: Aho and Corasick 1975. Size: one node per character of the strings.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise ValueError("an empty stop string would stop everything")
        self.nodes = [_TrieNode(0)]
        for string in strings:
            self._add(string)
        self._link()

    def _add(self, string: str) -> None:
        at = 0
        for depth, char in enumerate(string, start=1):
            following = self.nodes[at].next.get(char)
            if following is None:
                following = len(self.nodes)
                self.nodes[at].next[char] = following
                self.nodes.append(_TrieNode(depth))
            at = following
        self.nodes[at].stop = string

    def _link(self) -> None:
        """Set the fallbacks, shorter prefixes first, as longer ones depend on them."""
        queue = deque(self.nodes[0].next.values())
        while queue:
            node = self.nodes[queue.popleft()]
            for char, child in node.next.items():
                fallback = self.step(node.fallback, char)
                self.nodes[child].fallback = fallback
                self.nodes[child].stop = self.nodes[child].stop or self.nodes[fallback].stop
                queue.append(child)

    def step(self, at: int, char: str) -> int:
        """Return the node of the longest prefix that ends with this character.

        Cost: amortized O(1), as each fallback undoes an earlier step.
        """
        nodes = self.nodes
        while at and char not in nodes[at].next:
            at = nodes[at].fallback
        return nodes[at].next.get(char, 0)


class StopScanner:
    """Finds stop strings in one sequence's text and withholds text that may begin one.

    Laws: the released text is a prefix of the text before the stop string. What is withheld is the
    longest suffix that is a prefix of a stop string.
    """

    def __init__(self, strings: StopStrings, *, include: bool = False) -> None:
        self.matched: str | None = None  # the stop string that ended the text
        self._strings = strings
        self._include = include
        self._at = 0
        self._withheld = ""

    def push(self, text: str) -> str:
        """Add text; return the text that can be released, all of it before any stop string.

        After a match, nothing is released and nothing is withheld.
        """
        if self.matched is not None:
            return ""
        nodes = self._strings.nodes
        at = self._at
        for i, char in enumerate(text):
            at = self._strings.step(at, char)
            stop = nodes[at].stop
            if stop is not None:
                return self._end(self._withheld + text[: i + 1], stop)
        self._at = at
        return self._release(self._withheld + text, nodes[at].depth)

    def finish(self) -> str:
        """Return the withheld text, when the text has ended without a stop string."""
        return self._release(self._withheld, 0)

    def _release(self, text: str, withheld: int) -> str:
        certain = len(text) - withheld
        self._withheld = text[certain:]
        return text[:certain]

    def _end(self, text: str, stop: str) -> str:
        self.matched, self._withheld = stop, ""
        return text if self._include else text[: len(text) - len(stop)]
