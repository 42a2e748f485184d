"""Checks and prunes grammars: no dead ends, no left recursion.

Law: every prefix that a pruned grammar allows can be completed (no dead ends), and following a
grammar without left recursion takes finitely many expansions a character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    NOTHING,
    Alternation,
    AnyOrder,
    CharClass,
    Grammar,
    Item,
    Lexeme,
    LiteralText,
    Mark,
    Node,
    Ref,
    Repeat,
    Seq,
    alternation,
    any_order,
    children,
    is_nothing,
    repeat,
    seq,
)

Known = set[str]
Leaf = LiteralText | CharClass | Lexeme | Mark
Uses = dict[str, dict[str, None]]  # a rule -> the rules that it refers to, in order


def prune(grammar: Grammar) -> Grammar | None:
    """Return the grammar without alternatives that cannot end and without unreachable rules.

    None: nothing at all matches. The language stays the same.
    Cost: one visit of each reachable node; another one only if something is cut off.
    """
    uses, has_dead_ends = _survey(grammar.rules)
    alive = _productive(grammar.rules, uses, are_refs_enough=not has_dead_ends)
    if "root" not in alive:
        return None
    if has_dead_ends or len(alive) < len(uses):
        cut = {name: _cut(grammar.rules[name], alive) for name in uses if name in alive}
        return Grammar({name: cut[name] for name in reversed(_survey(cut)[0])})
    return Grammar({name: grammar.rules[name] for name in reversed(uses)})


def left_recursion(grammar: Grammar) -> str | None:
    """Return the name of a rule that can begin with itself, if there is one."""
    uses = {name: _refs(node)[0] for name, node in grammar.rules.items()}
    nullable = _fixpoint(uses, lambda name, known: _is_nullable(grammar.rules[name], known))
    firsts = {name: _first_refs(node, nullable) for name, node in grammar.rules.items()}
    done: set[str] = set()
    for start in grammar.rules:
        if (found := _find_cycle(start, firsts, done)) is not None:
            return found
    return None


def _survey(rules: Mapping[str, Node]) -> tuple[Uses, bool]:
    """Return the rules that can be reached with what they use, and whether any holds a dead end.

    Rules come behind those that they use, as far as nothing is recursive.
    """
    uses: Uses = {}
    seen: dict[str, dict[str, None]] = {}
    todo = ["root"]
    has_dead_ends = False
    while todo:
        name = todo[-1]
        if name in seen:
            uses[todo.pop()] = seen[name]
            continue
        seen[name], is_dead = _refs(rules[name])
        has_dead_ends |= is_dead
        todo.extend(target for target in seen[name] if target not in seen)
    return uses, has_dead_ends


def _refs(node: Node) -> tuple[dict[str, None], bool]:
    """Return the rules that a node uses, and whether a part of it matches nothing by itself."""
    found: dict[str, None] = {}
    is_dead = False
    todo = [node]
    while todo:
        node = todo.pop()
        if type(node) is LiteralText:
            continue
        if type(node) is Ref:
            found[node.name] = None
        elif type(node) is Seq or type(node) is Alternation:
            is_dead |= not node.items and type(node) is Alternation
            todo += node.items
        elif type(node) is Repeat:
            todo.append(node.item)
        elif type(node) is AnyOrder:
            todo += children(node)
        else:
            is_dead |= type(node) is CharClass and not node.ranges
    return found, is_dead


def productive_rules(rules: Mapping[str, Node]) -> Known:
    """Return the rules that some text matches, within the root's reach or not."""
    uses = {name: _refs(node)[0] for name, node in rules.items()}
    return _productive(rules, uses, are_refs_enough=False)


def dead_refs(node: Node, alive: Known) -> Known:
    """Return the rules that are not alive and for want of which a node matches nothing.

    Of a row these are the first part's that is dead, of alternatives those of each.
    """
    if isinstance(node, Ref):
        return set() if node.name in alive else {node.name}
    if isinstance(node, Repeat):
        return dead_refs(node.item, alive) if node.least else set()
    if isinstance(node, Alternation):
        return set().union(*(dead_refs(item, alive) for item in node.items))
    if isinstance(node, AnyOrder):
        return set().union(*(dead_refs(i.node, alive) for i in node.items if i.is_required))
    if isinstance(node, Seq):
        return next((dead for item in node.items if (dead := dead_refs(item, alive))), set())
    return set()


def _productive(rules: Mapping[str, Node], uses: Uses, *, are_refs_enough: bool) -> Known:
    """Return the rules among `uses` that some text matches.

    are_refs_enough: no rule holds a dead end, so that those whose references match do so, too.
    """

    def holds(name: str, known: Known) -> bool:
        if are_refs_enough and uses[name].keys() <= known:
            return True
        return _is_productive(rules[name], known)

    return _fixpoint(uses, holds)


def _fixpoint(uses: Uses, holds: Callable[[str, Known], bool]) -> Known:
    """Return the least set of rules closed under `holds`.

    One look at each rule is enough where they come behind those that they use; the others are
    looked at again by a worklist.
    """
    known: Known = set()
    for name in uses:
        if holds(name, known):
            known.add(name)
    users: dict[str, list[str]] = {}
    for name in uses.keys() - known:
        for target in uses[name]:
            users.setdefault(target, []).append(name)
    waiting = [name for name in uses if name not in known]
    while waiting:
        name = waiting.pop()
        if name not in known and holds(name, known):
            known.add(name)
            waiting += users.get(name, ())
    return known


def _is_productive(node: Node, known: Known) -> bool:
    """Tell whether some text matches, given rules that are known to."""
    return _holds(node, known, lambda leaf: not isinstance(leaf, CharClass) or bool(leaf.ranges))


def _is_nullable(node: Node, known: Known) -> bool:
    """Tell whether the empty text matches, given rules that are known to."""
    return _holds(node, known, _is_leaf_nullable)


def _is_leaf_nullable(leaf: Leaf) -> bool:
    if isinstance(leaf, Lexeme):
        return leaf.least == 0 and bool(leaf.dfa[3][0])
    return isinstance(leaf, Mark) or leaf == EMPTY


def _holds(node: Node, known: Known, holds: Callable[[Leaf], bool]) -> bool:
    """Tell whether what holds of leaves and known rules holds of a node."""
    if isinstance(node, Ref):
        return node.name in known
    if isinstance(node, Repeat):
        return node.least == 0 or _holds(node.item, known, holds)
    if isinstance(node, Seq):
        return all(_holds(item, known, holds) for item in node.items)
    if isinstance(node, Alternation):
        return any(_holds(item, known, holds) for item in node.items)
    if isinstance(node, AnyOrder):
        return _hold_enough(node, [_holds(item.node, known, holds) for item in node.items])
    return holds(node)


def _hold_enough(node: AnyOrder, held: list[bool]) -> bool:
    """Tell whether enough items hold, the required ones among them."""
    items = list(zip(node.items, held, strict=True))
    if not all(holds or not item.is_required for item, holds in items):
        return False
    return sum(held) >= node.least or any(holds and item.may_repeat for item, holds in items)


def _cut(node: Node, alive: Known) -> Node:
    if isinstance(node, Ref):
        return node if node.name in alive else NOTHING
    if isinstance(node, Seq):
        return seq(*(_cut(item, alive) for item in node.items))
    if isinstance(node, Alternation):
        return alternation([kept for i in node.items if not is_nothing(kept := _cut(i, alive))])
    if isinstance(node, Repeat):
        return repeat(_cut(node.item, alive), node.least, node.most)
    if isinstance(node, AnyOrder):
        items = [Item(_cut(i.node, alive), i.is_required, i.may_repeat) for i in node.items]
        return any_order(items, node.separator, node.least, node.most)
    return NOTHING if isinstance(node, CharClass) and not node.ranges else node


def _first_refs(node: Node, nullable: Known) -> Known:
    """Return the rules that a match of the node may begin with."""
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Repeat):
        return _first_refs(node.item, nullable)
    if isinstance(node, Alternation | AnyOrder):
        return set().union(*(_first_refs(item, nullable) for item in children(node)))
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
