"""Stop strings over a stream of text.

A stop string ends the text where it first becomes complete; of two that become complete with the
same character the longer wins. This depends neither on how the text is cut into pieces nor on
anything after it, so nothing has to be generated to find out.
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
    fallback: int = 0  # the longest proper suffix that is a prefix, too


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
        """Set the fallbacks, short prefixes first, because longer ones build on them."""
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

        Cost: amortised O(1), for every fallback undoes one step forward.
        """
        nodes = self.nodes
        while at and char not in nodes[at].next:
            at = nodes[at].fallback
        return nodes[at].next.get(char, 0)


class StopScanner:
    """Looks for stop strings in one sequence's text and holds back what may become one.

    Laws: what was released is a prefix of the text before the stop string, and short of it by
    no more than the longest suffix that is a prefix of a stop string.
    """

    def __init__(self, strings: StopStrings, *, include: bool = False) -> None:
        self.matched: str | None = None  # the stop string that ended the text
        self._strings = strings
        self._include = include
        self._at = 0
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that is certain now; all of it stands before any stop string.

        After a match nothing more comes, and nothing is held.
        """
        if self.matched is not None:
            return ""
        nodes = self._strings.nodes
        at = self._at
        for i, char in enumerate(text):
            at = self._strings.step(at, char)
            stop = nodes[at].stop
            if stop is not None:
                return self._end(self._held + text[: i + 1], stop)
        self._at = at
        return self._release(self._held + text, nodes[at].depth)

    def finish(self) -> str:
        """Return what was held back: the text has ended and no stop string can follow."""
        return self._release(self._held, 0)

    def _release(self, text: str, held: int) -> str:
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain]

    def _end(self, text: str, stop: str) -> str:
        self.matched, self._held = stop, ""
        return text if self._include else text[: len(text) - len(stop)]
