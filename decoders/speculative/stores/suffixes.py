"""Suffixes: how often each run of tokens occurs in some texts, and what most often follows it.

A suffix automaton, which is a suffix trie whose nodes that occur at the same places are one state:
a state stands for runs of several lengths, each a suffix of the next longer one, and its link leads
to the shorter runs that occur elsewhere, too. What a trie would say of each suffix of a run, the
states on the way along the links say, most often three to six instead of `depth` many.

Law: `count` of a run's state is the number of its occurrences, `best` the token that follows it
most often, of several the one that did so last; both for runs of at most `depth` tokens.
Cost: O(1) amortised a token to build, and the links of a run of `depth` tokens to count. Memory:
at most two states a token, 500 bytes a token of ordinary text.
Source: Blumer et al. 1985; Oliaro et al. 2024, SuffixDecoding, arXiv:2411.04975, for its use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_DEPTH = 64
ROOT = 0
NONE = -1


class SuffixAutomaton:
    """An index of texts that grow token by token; states are numbered as they come."""

    def __init__(self, depth: int) -> None:
        """Args: depth is the length of the longest runs that are counted."""
        self.depth = depth
        self.num_tokens = 0
        self.next: list[dict[int, int]] = [{}]  # state -> token -> state
        self.link = [NONE]  # state of the longest suffix that occurs elsewhere, too
        self.length = [0]  # of a state's longest run
        self.count = [0]
        self.best = [NONE]  # token
        self.last = ROOT  # state of the whole text
        self._above = [ROOT]  # a state on the way along the links to one that is counted

    def copy(self) -> SuffixAutomaton:
        """Return an automaton of the same texts that goes its own way."""
        made = SuffixAutomaton(self.depth)
        made.num_tokens, made.last = self.num_tokens, self.last
        made.next = [children.copy() for children in self.next]
        made.link, made.length = self.link.copy(), self.length.copy()
        made.count, made.best = self.count.copy(), self.best.copy()
        made._above = self._above.copy()
        return made

    def begin(self) -> None:
        """Begin another text."""
        self.last = ROOT

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        above, last = self._above, self.last
        for token in token_ids:
            before, last = last, self._transition(last, token)
            # Where the text is now, one run more has occurred ...
            self._count(last if above[last] == last else self.counted(last))
            # ... and has been followed by the token where it was before.
            self._vote(before if above[before] == before else self.counted(before), token)
            self.num_tokens += 1
        self.last = last

    def follow(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """Return the longest suffix of a run and a token that occurs, as (state, length).

        Args:
            state: of the run.
            matched: length of the run.
            token: behind it.
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
        # Of the states along the links, the one that holds runs of this length.
        while self.length[link[state]] >= matched:
            state = link[state]
        return state, matched

    def find(self, run: Sequence[int]) -> int:
        """Return the state of a run; NONE: it does not occur."""
        state = ROOT
        for token in run:
            state = self.next[state].get(token, NONE)
            if state == NONE:
                return NONE
        return state

    def counted(self, state: int) -> int:
        """Return the state itself, or that of its suffix of `depth` tokens if it is longer."""
        above = self._above
        found = state
        while above[found] != found:
            found = above[found]
        while above[state] != found:
            above[state], state = found, above[state]
        return found

    def _count(self, state: int) -> None:
        """Count one occurrence more of a state's runs and of all their suffixes."""
        link, count = self.link, self.count
        while state != NONE:
            count[state] += 1
            state = link[state]

    def _vote(self, state: int, token: int) -> None:
        """Let a token that has just followed a state's runs be the best, if it is."""
        following, link, count, best = self.next, self.link, self.count, self.best
        while state != NONE:
            known = best[state]
            if known != token:
                children = following[state]
                if known == NONE or count[children[token]] >= count[children[known]]:
                    best[state] = token
            state = link[state]

    def _transition(self, state: int, token: int) -> int:
        """Return the state of a text that was in some state and goes on with a token."""
        following, link = self.next, self.link
        if token in following[state]:  # another text went on in the same way
            return self._only(state, token)
        made = self._add(self.length[state] + 1, {})
        while state != NONE:
            children = following[state]
            if token in children:
                self._set_link(made, self._only(state, token))
                break
            children[token] = made
            state = link[state]
        return made

    def _only(self, state: int, token: int) -> int:
        """Return the state of a state's longest run and a token; split off, if it held longer ones.

        What occurs wherever a longer run did now occurs elsewhere, too.
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
        """Set a link; a state whose shortest run is longer than the depth isn't counted."""
        self.link[state] = link
        if self.length[link] >= self.depth:
            self._above[state] = link


class SuffixIndex:
    """The suffixes of a namespace's latest texts.

    An automaton forgets nothing, so there are two, each for half of the tokens: when the young one
    is full it becomes the old one, and the old one goes. Runs are counted in each for itself.
    """

    def __init__(self, depth: int, max_tokens: int) -> None:
        self._depth = depth
        self._share = max(max_tokens // 2, 1)
        self.automata = [SuffixAutomaton(depth)]  # the young one first

    def read(self, token_ids: Sequence[int], *, is_imported: bool) -> None:
        """Take in one text; imported or not, it counts the same."""
        kept = token_ids[-self._share :]
        young = self.automata[0]
        if young.num_tokens and young.num_tokens + len(kept) > self._share:
            young = SuffixAutomaton(self._depth)
            self.automata = [young, self.automata[0]]
        young.begin()
        young.extend(kept)

    def shares(self, run: Sequence[int], token_ids: Sequence[int]) -> list[float] | None:
        """Return at which share of a run's places each token follows; None: it has no place.

        Runs of less than `depth` tokens, one or more.
        """
        places, counts = 0, [0] * len(token_ids)
        for automaton in self.automata:
            state = automaton.find(run)
            if state == NONE:
                continue
            places += automaton.count[state]
            for i, token in enumerate(token_ids):
                child = automaton.next[state].get(token)
                counts[i] += 0 if child is None else automaton.count[child]
        return [count / places for count in counts] if places else None


def suffix_index(max_tokens: int) -> SuffixIndex:
    """Return the index that drafters ask a namespace for by the name `suffix`."""
    return SuffixIndex(MAX_DEPTH, max_tokens)
