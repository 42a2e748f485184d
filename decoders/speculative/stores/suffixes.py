"""Suffix automata: how often each substring occurs in some texts, and what follows it most often.

A suffix automaton is a suffix trie in which nodes that occur at the same positions are merged into
one state. A state stands for substrings of several lengths, each a suffix of the next longer one;
its suffix link leads to the state of the shorter suffixes, which occur elsewhere too. The states
along the suffix links know what a trie knows of every suffix, in three to six steps instead of
`depth` steps for most texts.

Law: `count` of a state is the number of occurrences of its substrings; `best` is the token that
follows most often, of equals the latest; both for substrings of at most `depth` tokens.
Cost: O(1) amortised a token to build, plus the suffix links of the last `depth` tokens to count.
Memory: at most two states a token, about 500 bytes a token of ordinary text.
Source: Blumer et al. 1985; Oliaro et al. 2024, SuffixDecoding, arXiv:2411.04975, for its use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_DEPTH = 64
ROOT = 0
NONE = -1


class SuffixAutomaton:
    """An index of texts, extended token by token; states are numbered in order of creation."""

    def __init__(self, depth: int) -> None:
        """Args: depth is the length of the longest substrings that are counted."""
        self.depth = depth
        self.num_tokens = 0
        self.next: list[dict[int, int]] = [{}]  # state -> token -> state
        self.link = [NONE]  # state of the longest suffix that occurs elsewhere too
        self.length = [0]  # of a state's longest substring
        self.count = [0]
        self.best = [NONE]  # most frequent next token
        self.last = ROOT  # state of the whole text
        self._above = [ROOT]  # a state nearer to the one that is counted, along the links

    def copy(self) -> SuffixAutomaton:
        """Return an independent copy. Cost: O(states)."""
        made = SuffixAutomaton(self.depth)
        made.num_tokens, made.last = self.num_tokens, self.last
        made.next = [children.copy() for children in self.next]
        made.link, made.length = self.link.copy(), self.length.copy()
        made.count, made.best = self.count.copy(), self.best.copy()
        made._above = self._above.copy()
        return made

    def begin(self) -> None:
        """Begin a new text."""
        self.last = ROOT

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        above, last = self._above, self.last
        for token in token_ids:
            before, last = last, self._transition(last, token)
            # One more occurrence of what the text ends with now ...
            self._count(last if above[last] == last else self.counted(last))
            # ... and one more of the token behind what it ended with before.
            self._update_best(before if above[before] == before else self.counted(before), token)
            self.num_tokens += 1
        self.last = last

    def follow(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """Return the longest suffix of a match and a next token that occurs, as (state, length).

        Args:
            state: of the match.
            matched: its length.
            token: the next token.
        """
        following, link = self.next, self.link
        while token not in following[state]:
            if state == ROOT:
                return ROOT, 0
            state = link[state]
            matched = self.length[state]
        state, matched = following[state][token], matched + 1
        if matched > self.depth:
            return self.counted(state), self.depth
        # Find the state, along the links, whose substrings have this length.
        while self.length[link[state]] >= matched:
            state = link[state]
        return state, matched

    def find(self, token_ids: Sequence[int]) -> int:
        """Return the state of a substring; NONE: it does not occur."""
        state = ROOT
        for token in token_ids:
            state = self.next[state].get(token, NONE)
            if state == NONE:
                return NONE
        return state

    def counted(self, state: int) -> int:
        """Return the state, or the state of its suffix of `depth` tokens if it is longer."""
        above = self._above
        found = state
        while above[found] != found:
            found = above[found]
        while above[state] != found:
            above[state], state = found, above[state]
        return found

    def _count(self, state: int) -> None:
        """Count one more occurrence of a state's substrings and of all their suffixes."""
        link, count = self.link, self.count
        while state != NONE:
            count[state] += 1
            state = link[state]

    def _update_best(self, state: int, token: int) -> None:
        """Update the best next token of a state and its suffixes; `token` has just followed."""
        following, link, count, best = self.next, self.link, self.count, self.best
        while state != NONE:
            known = best[state]
            if known != token:
                children = following[state]
                if known == NONE or count[children[token]] >= count[children[known]]:
                    best[state] = token
            state = link[state]

    def _transition(self, state: int, token: int) -> int:
        """Return the state behind one more token of a text, created if it is new."""
        following, link = self.next, self.link
        if token in following[state]:  # another text continued in the same way
            return self._exact_child(state, token)
        made = self._add(self.length[state] + 1, {})
        while state != NONE:
            children = following[state]
            if token in children:
                self._set_link(made, self._exact_child(state, token))
                break
            children[token] = made
            state = link[state]
        return made

    def _exact_child(self, state: int, token: int) -> int:
        """Return the state of exactly a state's longest substring and a token.

        If the child holds longer substrings it is split: the shorter ones now occur elsewhere too.
        """
        child = self.next[state][token]
        length = self.length[state] + 1
        if self.length[child] == length:
            return child
        made = self._add(length, self.next[child].copy())
        self.count[made], self.best[made] = self.count[child], self.best[child]
        self._set_link(made, self.link[child])
        self._set_link(child, made)
        while state != NONE and self.next[state].get(token) == child:
            self.next[state][token] = made
            state = self.link[state]
        return made

    def _add(self, length: int, children: dict[int, int]) -> int:
        made = len(self.length)
        self.next.append(children)
        self.link.append(ROOT)
        self.length.append(length)
        self.count.append(0)
        self.best.append(NONE)
        self._above.append(made)
        return made

    def _set_link(self, state: int, link: int) -> None:
        """Set a suffix link; a state with only substrings longer than `depth` isn't counted."""
        self.link[state] = link
        if self.length[link] >= self.depth:
            self._above[state] = link


class SuffixIndex:
    """The substrings of a namespace's latest texts.

    An automaton can't forget, so there are two generations, each for half of the tokens: when the
    young one is full it becomes the old one, and the old one is dropped. Each counts separately.
    """

    def __init__(self, depth: int, max_tokens: int) -> None:
        self._depth = depth
        self._max_tokens = max(max_tokens // 2, 1)
        self.automata = [SuffixAutomaton(depth)]  # the young one first

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Add one text; whether it was imported makes no difference."""
        kept = token_ids[-self._max_tokens :]
        young = self.automata[0]
        if young.num_tokens and young.num_tokens + len(kept) > self._max_tokens:
            young = SuffixAutomaton(self._depth)
            self.automata = [young, self.automata[0]]
        young.begin()
        young.extend(kept)

    def next_token_shares(
        self, substring: Sequence[int], token_ids: Sequence[int]
    ) -> list[float] | None:
        """Return the share of a substring's occurrences that each token follows; None: none.

        The substring has at least one token and less than `depth`.
        """
        occurrences, counts = 0, [0] * len(token_ids)
        for automaton in self.automata:
            state = automaton.find(substring)
            if state == NONE:
                continue
            occurrences += automaton.count[state]
            for i, token in enumerate(token_ids):
                child = automaton.next[state].get(token)
                counts[i] += 0 if child is None else automaton.count[child]
        return [count / occurrences for count in counts] if occurrences else None


def suffix_index(max_tokens: int) -> SuffixIndex:
    """Return the index that a namespace keeps by the name `suffix`."""
    return SuffixIndex(MAX_DEPTH, max_tokens)
