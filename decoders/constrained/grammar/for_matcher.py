"""Rewrite a grammar into the form that xgrammar masks fast.

xgrammar precomputes a mask for each state inside one rule. What repeats must therefore be one
right-recursive rule whose alternatives begin with characters; a repeated group or a repeated rule
costs a parse of the whole vocabulary at every step (measured: 1 s a mask instead of 10 us). And
counting costs a precomputed mask for each count, so long counts are left to the automaton, which
is exact: see `is_counted` and Automaton.keep.
"""

from __future__ import annotations

from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    Chars,
    Choice,
    Grammar,
    Node,
    Ref,
    Repeat,
    Seq,
    choice,
    repeat,
    seq,
    walk,
)

# Longest token that a constrained text may use. No token is longer than a relaxed count, so only
# a token that begins inside of a repetition can overrun its end.
MAX_TOKEN_BYTES = 32


def is_counted(node: Node) -> bool:
    """Tell whether the upper bound of this repetition is enforced by the automaton alone."""
    long = isinstance(node, Repeat) and node.most is not None and node.most >= MAX_TOKEN_BYTES
    return long and isinstance(node, Repeat) and is_text(node.item)


def is_text(node: Node) -> bool:
    """Tell whether a node is made of characters only, at least one of them."""
    if any(isinstance(part, Ref) for part in walk(node)):
        return False
    return not _is_nullable(node)


def _is_nullable(node: Node) -> bool:
    if isinstance(node, Repeat):
        return node.least == 0 or _is_nullable(node.item)
    if isinstance(node, Seq):
        return all(map(_is_nullable, node.items))
    return any(map(_is_nullable, node.items)) if isinstance(node, Choice) else node == EMPTY


def for_matcher(grammar: Grammar) -> Grammar:
    """Return a grammar of the same texts, but for longer ones where is_counted says so."""
    return _Rewriter().run(grammar)


class _Rewriter:
    def __init__(self) -> None:
        self._rules: dict[str, Node] = {}
        self._known: dict[Node, Node] = {}

    def run(self, grammar: Grammar) -> Grammar:
        rewritten = {name: self._node(node) for name, node in grammar.rules.items()}
        return Grammar({**rewritten, **self._rules})

    def _node(self, node: Node) -> Node:
        if isinstance(node, Seq):
            return seq(*map(self._node, node.items))
        if isinstance(node, Choice):
            return choice([self._node(item) for item in node.items])
        if isinstance(node, Repeat):
            known = self._known.get(node)
            if known is None:
                known = self._known[node] = self._repeat(node)
            return known
        return node

    def _repeat(self, node: Repeat) -> Node:
        most = None if is_counted(node) else node.most
        item = self._node(node.item)
        if isinstance(item, Chars) or (not is_text(node.item) and most is not None):
            return repeat(item, node.least, most)
        if most is None and node.least > MAX_TOKEN_BYTES:
            return seq(repeat(item, node.least, node.least), self._endless(item))
        return self._chain(item, node.least, most)

    def _endless(self, item: Node) -> Ref:
        name = self._name()
        self._rules[name] = choice([*_followed(item, Ref(name)), EMPTY])
        return Ref(name)

    def _chain(self, item: Node, least: int, most: int | None) -> Node:
        """Return one rule for each count, the last one first."""
        following: Node = EMPTY if most is not None else self._endless(item)
        for count in range(least if most is None else most, 0, -1):
            body = _followed(item, following)
            following = Ref(self._name())
            self._rules[following.name] = choice([*body, *([EMPTY] if count > least else [])])
        return following

    def _name(self) -> str:
        return f"x{len(self._rules)}"


def _followed(item: Node, following: Node) -> list[Node]:
    """Return the alternatives of an item, each followed by a node."""
    alternatives = item.items if isinstance(item, Choice) else (item,)
    return [seq(alternative, following) for alternative in alternatives]
