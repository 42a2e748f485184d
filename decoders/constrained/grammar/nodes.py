"""Context-free grammars over Unicode text: node types and their GBNF form.

Everything that constrains an answer (JSON schema, regex, choice, a user's own grammar) becomes a
`Grammar` first. One automaton is made of it, which gives both the mask and the way to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from plait.kernels.grammar import DfaParts

MAX_CODE_POINT = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]  # inclusive code points, sorted, not touching, no surrogates


class LiteralText(msgspec.Struct, frozen=True):
    """Exactly this text; "" is the empty word."""

    value: str


class CharClass(msgspec.Struct, frozen=True, cache_hash=True):
    """One character out of the ranges."""

    ranges: Ranges


class Seq(msgspec.Struct, frozen=True, cache_hash=True):
    """The items one after the other."""

    items: tuple[Node, ...]


class Alternation(msgspec.Struct, frozen=True, cache_hash=True):
    """One of the items; no items: nothing matches."""

    items: tuple[Node, ...]


class Repeat(msgspec.Struct, frozen=True, cache_hash=True):
    """The item least..most times; most None: without end."""

    item: Node
    least: int
    most: int | None


class Ref(msgspec.Struct, frozen=True):
    """The rule of that name."""

    name: str


class Lexeme(msgspec.Struct, frozen=True, eq=False):
    """A text of least..most characters (most None: without end) that an automaton accepts."""

    dfa: DfaParts
    least: int = 0
    most: int | None = None


class Item(msgspec.Struct, frozen=True):
    """One of the items of AnyOrder."""

    node: Node
    is_required: bool = False
    may_repeat: bool = False


class AnyOrder(msgspec.Struct, frozen=True, eq=False):
    """least..most of the items (most None: any number) in any order, separators between them.

    Each at most once unless it may repeat; those that are required are among them. No item matches
    the empty text.
    """

    items: tuple[Item, ...]
    separator: Node
    least: int = 0
    most: int | None = None


# Marks: the members of a bracket that opens differ; an end of the text may add some.
DISTINCT, GROWING = 1, 2


class Mark(msgspec.Struct, frozen=True):
    """The empty text; the automaton tells that it was led over it (see distinct.py)."""

    bits: int
    pointers: tuple[str, ...] = ()  # of the keywords of a schema that it stands for


Node = LiteralText | CharClass | Seq | Alternation | Repeat | Ref | Lexeme | AnyOrder | Mark
EMPTY = LiteralText("")
NOTHING = Alternation(())


@dataclass(frozen=True, slots=True)
class Grammar:
    """Named rules; matching starts at `root`."""

    rules: Mapping[str, Node]
    # Says why, should nothing match.
    diagnose: Callable[[], Exception] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return "\n".join(f"{name} ::= {_show(node, 0)}" for name, node in self.rules.items())


def is_nothing(node: Node) -> bool:
    """Tell whether a node is NOTHING, without comparing what it holds."""
    return type(node) is Alternation and not node.items


def seq(*items: Node) -> Node:
    """Return the items in a row, flat and without empty words."""
    flat: list[Node] = []
    for item in items:
        if type(item) is Seq:
            flat += item.items
        elif type(item) is LiteralText:
            if item.value:
                flat.append(item)
        elif is_nothing(item):
            return NOTHING
        else:
            flat.append(item)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat)) if flat else EMPTY


def alternation(items: Iterable[Node]) -> Node:
    """Return the alternatives, flat and each once."""
    given = tuple(items)
    if len(given) == 1 and type(given[0]) is not Alternation:
        return given[0]
    if len(given) == 2 and type(given[0]) is not Alternation and type(given[1]) is not Alternation:
        # without hashes of all below
        return given[0] if given[0] == given[1] else Alternation(given)
    flat: dict[Node, None] = {}
    for item in given:
        if type(item) is Alternation:
            flat.update(dict.fromkeys(item.items))
        else:
            flat[item] = None
    return next(iter(flat)) if len(flat) == 1 else Alternation(tuple(flat))


def optional(item: Node) -> Node:
    """Return the item or nothing."""
    return EMPTY if is_nothing(item) else alternation([item, EMPTY])


def repeat(item: Node, least: int, most: int | None) -> Node:
    """Return the item least..most times."""
    if most is not None and least > most:
        return NOTHING
    if most == 0 or item == EMPTY or is_nothing(item):
        return EMPTY if least == 0 or item == EMPTY else NOTHING
    return item if (least, most) == (1, 1) else Repeat(item, least, most)


def any_order(items: Iterable[Item], separator: Node, least: int, most: int | None) -> Node:
    """Return the items in any order, without those that match nothing; NOTHING if none is left."""
    given = tuple(items)
    kept = tuple(item for item in given if not is_nothing(item.node))
    num_required = sum(item.is_required for item in given)
    enough = any(item.may_repeat for item in kept) or len(kept) >= least
    if sum(item.is_required for item in kept) < num_required or not enough:
        return NOTHING
    if most is not None and max(least, num_required) > most:
        return NOTHING
    return AnyOrder(kept, separator, least, most) if kept and most != 0 else EMPTY


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes right below this one."""
    if isinstance(node, Seq | Alternation):
        return node.items
    if isinstance(node, AnyOrder):
        return (node.separator, *(item.node for item in node.items))
    return (node.item,) if isinstance(node, Repeat) else ()


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and all nodes below it."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(children(node))


def _show(node: Node, level: int) -> str:
    """Write a node as GBNF; level 0: alternatives, 1: a row, 2: one factor."""
    if isinstance(node, Mark):
        return f"<mark {node.bits}>"
    if isinstance(node, LiteralText):
        return '"' + "".join(_escape(ord(c), '"\\') for c in node.value) + '"'
    if isinstance(node, CharClass):
        return "[" + "".join(_show_range(*pair) for pair in node.ranges) + "]"
    if isinstance(node, Ref):
        return node.name
    if isinstance(node, Lexeme | AnyOrder | Repeat):
        return _show_counted(node) + _show_times(node.least, node.most)
    own, sign = (1, " ") if isinstance(node, Seq) else (0, " | ")
    text = sign.join(_show(item, own + 1) for item in node.items)
    return f"({text})" if level > own else text


def _show_counted(node: Lexeme | AnyOrder | Repeat) -> str:
    """Write what is counted; automata and items in any order have no form in GBNF."""
    if isinstance(node, Lexeme):
        return f"<{len(node.dfa[3])} states>"
    if isinstance(node, AnyOrder):
        signs = ("", "!", "*", "+")
        shown = [_show(i.node, 0) + signs[i.is_required + 2 * i.may_repeat] for i in node.items]
        return f"<{', '.join(shown)}>"
    item = _show(node.item, 2)
    return f"({item})" if isinstance(node.item, Repeat) else item


def _show_range(first: int, last: int) -> str:
    special = "]\\^-["
    text = _escape(first, special)
    return text if first == last else f"{text}-{_escape(last, special)}"


def _show_times(least: int, most: int | None) -> str:
    sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
    if sign is not None:
        return sign
    return f"{{{least},{'' if most is None else most}}}"


def _escape(code: int, special: str) -> str:
    if 0x20 <= code < 0x7F and chr(code) not in special:
        return chr(code)
    # Some readers take \x on for as long as hexadecimal digits follow; \u takes four.
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
