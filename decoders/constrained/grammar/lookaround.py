"""Regular expressions with anchors and look-around, as regular sets of whole texts.

A tree is turned into what may stand from a place to the end of the text, given what may stand
after it. That can depend on the character before, so it is one set for the start of the text and
one for each block of characters that some assertion tells apart. A look-ahead is an intersection
then, and a negative one the intersection with a complement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from plait.decoders.constrained.grammar import chars, regex
from plait.decoders.constrained.grammar.nodes import Ranges
from plait.decoders.constrained.grammar.regex import ANY_CHAR, ANY_TEXT, EMPTY_SET, EPSILON, Expr

MAX_COPIES = 64  # of a repeated part with an assertion inside
MAX_BLOCKS = 16  # classes of characters that assertions tell apart
WORD = chars.normalise([(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0x5F, 0x5F)])
_OTHER = chars.complement(WORD)
_SOME = regex.times(ANY_CHAR, 1, None)


class NotRegular(ValueError):
    """What the tree says cannot be turned into a set; the message says why."""


@dataclass(frozen=True, slots=True)
class StartAnchor:
    """^"""


@dataclass(frozen=True, slots=True)
class EndAnchor:
    """$"""


@dataclass(frozen=True, slots=True)
class WordBoundary:
    r"""\b, or \B when negated."""

    is_negated: bool


@dataclass(frozen=True, slots=True)
class LookaheadAssertion:
    """(?=tree), or (?!tree) when negated."""

    tree: Tree
    is_negated: bool


@dataclass(frozen=True, slots=True)
class LookbehindAssertion:
    """(?<=[...]), or (?<![...]) when negated: what the one character before is."""

    ranges: Ranges
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Trees one after the other."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Disjunction:
    """One of the trees."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Quantified:
    """A tree least..most times."""

    tree: Tree
    least: int
    most: int | None


Assertion = StartAnchor | EndAnchor | WordBoundary | LookaheadAssertion | LookbehindAssertion
Tree = (
    Expr | Concatenation | Disjunction | Quantified | Assertion
)  # an Expr has no assertion inside
Sets = tuple[Expr, ...]  # of what follows: at the start of the text, then after each block


def full_match(tree: Tree) -> Expr:
    """Return the texts that the tree matches from their first to their last character.

    Raises:
        NotRegular: an assertion inside a loop.
    """
    blocks = _blocks(tree)
    return _SuffixSets(blocks).of(tree, (EPSILON,) * (1 + len(blocks)))[0]


def search(tree: Tree) -> Expr:
    """Return the texts in which the tree matches somewhere.

    Raises:
        NotRegular: an assertion inside a loop.
    """
    blocks = _blocks(tree)
    start, *later = _SuffixSets(blocks).of(tree, (ANY_TEXT,) * (1 + len(blocks)))
    if all(found is start for found in later):
        return regex.concat([ANY_TEXT, start])
    if len(set(later)) == 1:
        return regex.union([start, regex.concat([_SOME, later[0]])])
    ahead = [regex.concat([ANY_TEXT, regex.char(b), s]) for b, s in zip(blocks, later, strict=True)]
    return regex.union([start, *ahead])


def _blocks(tree: Tree) -> list[Ranges]:
    """Return the classes of characters that assertions about the character before tell apart."""
    blocks = [chars.ANY]
    for ranges in dict.fromkeys(_told_apart(tree)):
        halves = (ranges, chars.complement(ranges))
        blocks = [cut for b in blocks for half in halves if (cut := chars.intersect(b, half))]
        if len(blocks) > MAX_BLOCKS:
            raise NotRegular("it looks behind in too many ways")
    return blocks


def _told_apart(tree: Tree) -> Iterator[Ranges]:
    if isinstance(tree, LookbehindAssertion):
        yield tree.ranges
    elif isinstance(tree, WordBoundary):
        yield WORD
    elif isinstance(tree, LookaheadAssertion | Quantified):
        yield from _told_apart(tree.tree)
    elif isinstance(tree, Concatenation | Disjunction):
        for item in tree.items:
            yield from _told_apart(item)


class _SuffixSets:
    """Turns trees into sets, for given blocks of characters."""

    def __init__(self, blocks: list[Ranges]) -> None:
        self._blocks = blocks

    def of(self, tree: Tree, after: Sets) -> Sets:
        """Return what may stand from the tree on, given what may stand after it."""
        if isinstance(tree, Expr):
            return self._expr(tree, after)
        return _TURN[type(tree)](self, tree, after)

    def _expr(self, expr: Expr, after: Sets) -> Sets:
        start, *later = after
        if all(found is later[0] for found in later):
            rest = regex.concat([expr, later[0]])
            if start is later[0]:
                return (rest,) * len(after)
            moved = regex.concat([_nonempty(expr), later[0]])
            at_start = regex.union([moved, start]) if expr.is_nullable else moved
            return (at_start, *[rest] * len(later))
        moved = regex.union(
            regex.concat([_ending_in(expr, block), found])
            for block, found in zip(self._blocks, later, strict=True)
        )
        if not expr.is_nullable:
            return (moved,) * len(after)
        return tuple(regex.union([moved, found]) for found in after)

    def row(self, tree: Concatenation, after: Sets) -> Sets:
        for item in reversed(tree.items):
            after = self.of(item, after)
        return after

    def either(self, tree: Disjunction, after: Sets) -> Sets:
        return _joined(*(self.of(item, after) for item in tree.items))

    def times(self, tree: Quantified, after: Sets) -> Sets:
        if tree.most is None:
            return self._loop(tree, after)
        if tree.most > MAX_COPIES:
            raise NotRegular(f"an anchor or look-around is repeated more than {MAX_COPIES} times")
        found = after
        for count in range(tree.most, 0, -1):
            taken = self.of(tree.tree, found)
            found = _joined(taken, after) if count > tree.least else taken
        return found

    def _loop(self, tree: Quantified, after: Sets) -> Sets:
        found = _ending(tree)
        if found is not None:
            going_on, ending = found
            return _joined(
                self._expr(going_on, after), self._expr(ending, self.end(EndAnchor(), after))
            )
        guarded = self._guarded(tree) if set(after) == {EPSILON} else None
        if guarded is None:
            raise NotRegular(
                "an anchor or look-around inside a repetition without end; write it before the "
                "loop, as in ^(?!.*X)"
            )
        return (guarded,) * len(after)

    def _guarded(self, tree: Quantified) -> Expr | None:
        """Return the loop `(?:(?!X)[...])*` at the end of a text: nowhere does an X begin."""
        *tests, step = tree.tree.items if isinstance(tree.tree, Concatenation) else (EPSILON,)
        if not isinstance(step, Expr) or step.kind != "set":
            return None
        unwanted: list[Expr] = []
        for test in tests:
            if not isinstance(test, LookaheadAssertion) or not test.is_negated:
                return None
            several = set(self.of(test.tree, self._anything()))
            if len(several) > 1:
                return None
            unwanted += several
        somewhere = regex.concat([ANY_TEXT, regex.intersection(regex.union(unwanted), _SOME)])
        steps = regex.times(step, tree.least, None)
        return regex.intersection(steps, regex.complement(somewhere))

    def start(self, _: StartAnchor, after: Sets) -> Sets:
        return (after[0], *[EMPTY_SET] * len(self._blocks))

    def end(self, _: EndAnchor, after: Sets) -> Sets:
        return tuple(EPSILON if found.is_nullable else EMPTY_SET for found in after)

    def ahead(self, tree: LookaheadAssertion, after: Sets) -> Sets:
        inner = self.of(tree.tree, self._anything())
        if tree.is_negated:
            inner = tuple(map(regex.complement, inner))
        return tuple(map(regex.intersection, inner, after))

    def behind(self, tree: LookbehindAssertion, after: Sets) -> Sets:
        start, *later = after
        return (start if tree.is_negated else EMPTY_SET, *self._where(tree.ranges, tree, later))

    def boundary(self, tree: WordBoundary, after: Sets) -> Sets:
        word = regex.concat([regex.char(WORD), ANY_TEXT])
        other = regex.union([EPSILON, regex.concat([regex.char(_OTHER), ANY_TEXT])])
        is_word = [False, *(chars.contains(WORD, block[0][0]) for block in self._blocks)]
        wants_word = [is_one == tree.is_negated for is_one in is_word]
        return tuple(
            regex.intersection(word if wants else other, found)
            for wants, found in zip(wants_word, after, strict=True)
        )

    def _where(
        self, ranges: Ranges, tree: LookbehindAssertion, later: list[Expr]
    ) -> Iterator[Expr]:
        for block, found in zip(self._blocks, later, strict=True):
            is_inside = chars.contains(ranges, block[0][0])
            yield found if is_inside != tree.is_negated else EMPTY_SET

    def _anything(self) -> Sets:
        return (ANY_TEXT,) * (1 + len(self._blocks))


def _ending(tree: Tree) -> tuple[Expr, Expr] | None:
    """Return what a tree may read before it goes on, and before the text must end there.

    None: it holds another assertion than $.
    """
    if isinstance(tree, Expr | EndAnchor):
        return (tree, EMPTY_SET) if isinstance(tree, Expr) else (EMPTY_SET, EPSILON)
    if isinstance(tree, Quantified):
        return _ending_times(tree)
    if not isinstance(tree, Concatenation | Disjunction):
        return None
    parts = [found for item in tree.items if (found := _ending(item)) is not None]
    if len(parts) < len(tree.items):
        return None
    if isinstance(tree, Disjunction):
        return regex.union(p for p, _ in parts), regex.union(e for _, e in parts)
    going_on, ending = EPSILON, EMPTY_SET
    for first, last in reversed(parts):
        may_be_empty = going_on.is_nullable or ending.is_nullable
        ended = last if may_be_empty else EMPTY_SET
        ending = regex.union([regex.concat([first, ending]), ended])
        going_on = regex.concat([first, going_on])
    return going_on, ending


def _ending_times(tree: Quantified) -> tuple[Expr, Expr] | None:
    found = _ending(tree.tree)
    if found is None:
        return None
    step, last = found
    may_be_empty = step.is_nullable or last.is_nullable
    least = 0 if may_be_empty else max(tree.least - 1, 0)
    most = None if tree.most is None else tree.most - 1
    ending = regex.concat([regex.times(step, least, most), last]) if tree.most != 0 else EMPTY_SET
    return regex.times(step, tree.least, tree.most), ending


def _joined(*several: Sets) -> Sets:
    return tuple(regex.union(found) for found in zip(*several, strict=True))


def _nonempty(expr: Expr) -> Expr:
    if not expr.is_nullable:
        return expr
    if expr.kind == "repeat" and not expr.items[0].is_nullable:
        return regex.times(expr.items[0], 1, expr.most)
    return regex.intersection(expr, _SOME)


def _ending_in(expr: Expr, block: Ranges) -> Expr:
    if expr.kind == "set":
        return regex.char(chars.intersect(expr.ranges, block))
    return regex.intersection(expr, regex.concat([ANY_TEXT, regex.char(block)]))


_TURN: dict[type, Callable[[_SuffixSets, Any, Sets], Sets]] = {
    Concatenation: _SuffixSets.row,
    Disjunction: _SuffixSets.either,
    Quantified: _SuffixSets.times,
    StartAnchor: _SuffixSets.start,
    EndAnchor: _SuffixSets.end,
    WordBoundary: _SuffixSets.boundary,
    LookaheadAssertion: _SuffixSets.ahead,
    LookbehindAssertion: _SuffixSets.behind,
}
