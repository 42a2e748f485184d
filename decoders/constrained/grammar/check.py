"""What a grammar must satisfy before it may constrain an answer.

Law: every prefix that a pruned grammar allows can be completed (no dead ends), and following a
grammar without left recursion takes finitely many expansions a character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    NOTHING,
    Chars,
    Choice,
    Grammar,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    choice,
    repeat,
    seq,
    walk,
)

Known = set[str]


def prune(grammar: Grammar) -> Grammar | None:
    """Return the grammar without alternatives that cannot end and without unreachable rules.

    None: nothing at all matches. The language stays the same.
    """
    alive = _fixpoint(grammar.rules, _is_productive)
    if "root" not in alive:
        return None
    rules = {n: _cut(node, alive) for n, node in grammar.rules.items() if n in alive}
    return Grammar(_reachable(rules))


def left_recursion(grammar: Grammar) -> str | None:
    """Return the name of a rule that can begin with itself, if there is one."""
    nullable = _fixpoint(grammar.rules, _is_nullable)
    firsts = {name: _first_refs(node, nullable) for name, node in grammar.rules.items()}
    done: set[str] = set()
    for start in grammar.rules:
        if (found := _find_cycle(start, firsts, done)) is not None:
            return found
    return None


def _fixpoint(rules: Mapping[str, Node], holds: Callable[[Node, Known], bool]) -> Known:
    """Return the least set of rules closed under `holds`, by a worklist."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, node in rules.items():
        for target in {found.name for found in walk(node) if isinstance(found, Ref)}:
            users[target].append(name)
    known: Known = set()
    waiting = dict.fromkeys(reversed(list(rules)))
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        if name not in known and holds(rules[name], known):
            known.add(name)
            waiting.update(dict.fromkeys(users[name]))
    return known


def _is_productive(node: Node, known: Known) -> bool:
    """Tell whether some text matches, given rules that are known to."""
    return _holds(node, known, lambda leaf: isinstance(leaf, Text) or bool(leaf.ranges))


def _is_nullable(node: Node, known: Known) -> bool:
    """Tell whether the empty text matches, given rules that are known to."""
    return _holds(node, known, lambda leaf: leaf == EMPTY)


def _holds(node: Node, known: Known, holds: Callable[[Text | Chars], bool]) -> bool:
    """Tell whether what holds of leaves and known rules holds of a node."""
    if isinstance(node, Ref):
        return node.name in known
    if isinstance(node, Repeat):
        return node.least == 0 or _holds(node.item, known, holds)
    if isinstance(node, Seq):
        return all(_holds(item, known, holds) for item in node.items)
    if isinstance(node, Choice):
        return any(_holds(item, known, holds) for item in node.items)
    return holds(node)


def _cut(node: Node, alive: Known) -> Node:
    if isinstance(node, Ref):
        return node if node.name in alive else NOTHING
    if isinstance(node, Seq):
        return seq(*(_cut(item, alive) for item in node.items))
    if isinstance(node, Choice):
        return choice([kept for i in node.items if (kept := _cut(i, alive)) != NOTHING])
    if isinstance(node, Repeat):
        return repeat(_cut(node.item, alive), node.least, node.most)
    return node if isinstance(node, Text) or node.ranges else NOTHING


def _reachable(rules: Mapping[str, Node]) -> dict[str, Node]:
    seen = {"root": None}
    todo = ["root"]
    while todo:
        for node in walk(rules[todo.pop()]):
            if isinstance(node, Ref) and node.name not in seen:
                seen[node.name] = None
                todo.append(node.name)
    return {name: rules[name] for name in seen}


def _first_refs(node: Node, nullable: Known) -> Known:
    """Return the rules that a match of the node may begin with."""
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Repeat):
        return _first_refs(node.item, nullable)
    if isinstance(node, Choice):
        return set().union(*(_first_refs(item, nullable) for item in node.items))
    found: Known = set()
    for item in node.items if isinstance(node, Seq) else ():
        found |= _first_refs(item, nullable)
        if not _is_nullable(item, nullable):
            break
    return found


def _find_cycle(start: str, edges: Mapping[str, Known], done: set[str]) -> str | None:
    """Search depth first from start without recursion; `done` rules are free of cycles."""
    path: dict[str, None] = {}
    todo = [(start, False)]
    while todo:
        name, leaving = todo.pop()
        if leaving:
            del path[name]
            done.add(name)
        elif name in path:
            return name
        elif name not in done:
            path[name] = None
            todo.append((name, True))
            todo.extend((target, False) for target in edges.get(name, ()))
    return None
