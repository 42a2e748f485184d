"""Read GBNF, the grammar notation of llama.cpp and xgrammar.

    root  ::= greeting (", " name)?      # alternatives |, groups ( ), repetition ? * + {m,n}
    name  ::= [A-Z] [a-z]{1,20}          # classes, ranges, [^...]; any character: .

Escapes: \\n \\r \\t \\\\ \\" \\[ \\] \\- \\^ \\xHH \\uHHHH \\UHHHHHHHH. A rule ends where the
next one begins. What is unknown here (look-ahead, macros, token references) is refused by line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

from plait.decoders.constrained.grammar.chars import ANY, complement, normalise
from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    CharClass,
    Grammar,
    LiteralText,
    Node,
    Ref,
    alternation,
    repeat,
    seq,
    walk,
)

MAX_REPEAT = 100_000
MAX_NESTING = 64

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
    |(?P<rule>[A-Za-z_][\w-]*\s*::=)
    |(?P<name>[A-Za-z_][\w-]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<set>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<times>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[|()?*+.])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL
)
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}
_PLAIN = set("\\\"'[]-^/.")
_TIMES = {"?": (0, 1), "*": (0, None), "+": (1, None)}


class GrammarError(ValueError):
    """The text is no grammar; the message names the line."""


def parse(text: str) -> Grammar:
    """Return the grammar that the text describes.

    Raises:
        GrammarError: the text is malformed, a rule is missing or defined twice.
    """
    reader = _GbnfParser(text, _tokens(text))
    rules: dict[str, Node] = {}
    while not reader.at_end():
        name, at = reader.rule_name()
        if name in rules:
            raise reader.error(at, f"rule {name!r} is defined twice")
        rules[name] = reader.alternatives()
        if not reader.at_end() and reader.kind() != "rule":
            raise reader.error(reader.offset(), f"{reader.token()!r} is not expected here")
    _check_names(rules, reader)
    return Grammar(rules)


def _check_names(rules: dict[str, Node], reader: _GbnfParser) -> None:
    if "root" not in rules:
        raise GrammarError("the grammar has no rule named 'root'")
    for node in rules.values():
        for found in walk(node):
            if isinstance(found, Ref) and found.name not in rules:
                at = reader.used[found.name]
                raise reader.error(at, f"rule {found.name!r} is not defined")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(text, at, f"cannot read {text[at : at + 12]!r}")
        if match.lastgroup != "skip":
            found.append((str(match.lastgroup), match.group(), at))
        at = match.end()
    return found


def _error(text: str, at: int, what: str) -> GrammarError:
    starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
    line = bisect_right(starts, at)
    return GrammarError(f"line {line}, column {at - starts[line - 1] + 1}: {what}")


@dataclass(slots=True)
class _GbnfParser:
    """Recursive descent over the tokens."""

    text: str
    tokens: list[tuple[str, str, int]]
    index: int = 0
    depth: int = 0
    used: dict[str, int] = field(default_factory=dict)  # rule name -> offset of its first use

    def at_end(self) -> bool:
        return self.index == len(self.tokens)

    def kind(self) -> str:
        return self.tokens[self.index][0]

    def token(self) -> str:
        return self.tokens[self.index][1]

    def offset(self) -> int:
        return len(self.text) if self.at_end() else self.tokens[self.index][2]

    def error(self, at: int, what: str) -> GrammarError:
        return _error(self.text, at, what)

    def sees(self, sign: str) -> bool:
        return not self.at_end() and self.kind() == "sign" and self.token() == sign

    def rule_name(self) -> tuple[str, int]:
        if self.at_end() or self.kind() != "rule":
            raise self.error(self.offset(), "a rule begins with its name and '::='")
        _, token, at = self.tokens[self.index]
        self.index += 1
        return token[:-3].rstrip(), at

    def alternatives(self) -> Node:
        found = [self.row()]
        while self.sees("|"):
            self.index += 1
            found.append(self.row())
        return alternation(found)

    def row(self) -> Node:
        found: list[Node] = []
        while not self.at_end() and self.kind() != "rule" and self.token() not in ("|", ")"):
            found.append(self.repeated(self.factor()))
        return seq(*found)

    def factor(self) -> Node:
        kind, token, at = self.tokens[self.index]
        self.index += 1
        if kind == "name":
            self.used.setdefault(token, at)
            return Ref(token)
        if kind == "text":
            return (
                LiteralText("".join(map(chr, self.codes(token[1:-1], at))))
                if token != '""'
                else EMPTY
            )
        if kind == "set":
            return self.char_set(token[1:-1], at)
        if token == ".":
            return CharClass(ANY)
        if token == "(":
            return self.group(at)
        raise self.error(at, f"{token!r} has nothing to repeat")

    def group(self, at: int) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.error(at, f"groups are nested more than {MAX_NESTING} deep")
        node = self.alternatives()
        if not self.sees(")"):
            raise self.error(at, "this group is not closed")
        self.index += 1
        self.depth -= 1
        return node

    def repeated(self, node: Node) -> Node:
        while not self.at_end() and (self.kind() == "times" or self.token() in _TIMES):
            kind, token, at = self.tokens[self.index]
            self.index += 1
            least, most = self.bounds(token, at) if kind == "times" else _TIMES[token]
            node = repeat(node, least, most)
        return node

    def bounds(self, token: str, at: int) -> tuple[int, int | None]:
        first, comma, last = token[1:-1].replace(" ", "").partition(",")
        least = int(first)
        most = (int(last) if last else None) if comma else least
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise self.error(at, f"{token} is not a repetition of at most {MAX_REPEAT}")
        return least, most

    def codes(self, body: str, at: int) -> list[int]:
        """Return the code points of a literal's or a class's body, escapes resolved."""
        return [code for code, _ in self.units(body, at)]

    def units(self, body: str, at: int) -> list[tuple[int, bool]]:
        found = []
        for match in _ESCAPE.finditer(body):
            *hexes, named, plain = match.groups()
            if plain is not None:
                found.append((ord(plain), False))
            elif named is not None:
                if named not in _NAMED and named not in _PLAIN:
                    raise self.error(at, f"unknown escape \\{named}")
                found.append((ord(_NAMED.get(named, named)), True))
            else:
                found.append((self.scalar(next(h for h in hexes if h), at), True))
        return found

    def scalar(self, digits: str, at: int) -> int:
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self.error(at, f"U+{code:04X} is not a character")
        return code

    def char_set(self, body: str, at: int) -> Node:
        negated = body.startswith("^")
        units = self.units(body[negated:], at)
        pairs, index = [], 0
        while index < len(units):
            first = last = units[index][0]
            if index + 2 < len(units) and units[index + 1] == (ord("-"), False):
                last, index = units[index + 2][0], index + 2
            if last < first:
                raise self.error(at, f"the range {chr(first)}-{chr(last)} is backwards")
            pairs.append((first, last))
            index += 1
        ranges = normalise(pairs)
        return CharClass(complement(ranges) if negated else ranges)
