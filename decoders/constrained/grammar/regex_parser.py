"""Read ECMA-262 regular expressions, the dialect of JSON schema, and refuse by name what is not
regular or not certain.

Lazy quantifiers match the same texts as greedy ones and are read as such. Refused: back references,
inline flags, look-behind for more than one character (but after a ^), assertions inside endless
loops (but $, and what is not to begin there), Unicode properties other than general categories, and
what other dialects read differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Never

from plait.decoders.constrained.grammar import chars, lookaround, regex
from plait.decoders.constrained.grammar.lookaround import (
    WORD,
    Concatenation,
    Disjunction,
    EndAnchor,
    LookaheadAssertion,
    LookbehindAssertion,
    NotRegular,
    Quantified,
    StartAnchor,
    Tree,
    WordBoundary,
)
from plait.decoders.constrained.grammar.nodes import Ranges
from plait.decoders.constrained.grammar.regex import ANY_TEXT, EPSILON, Expr

MAX_REPEAT = 100_000
MAX_NESTING = 64

_DIGIT = chars.normalise([(0x30, 0x39)])
_SPACE = chars.normalise(
    [*chars.of("\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), (0x2000, 0x200A)]
)
_LINE_END = chars.of("\n\r\u2028\u2029")
_CLASSES = {"d": _DIGIT, "w": WORD, "s": _SPACE}
_CLASSES |= {name.upper(): chars.complement(found) for name, found in _CLASSES.items()}
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_REFERENCES = "back references are not supported; write out what may stand there again"
_REFUSED_ESCAPES = dict.fromkeys("123456789k", _REFERENCES)
_REFUSED_ESCAPES |= {"A": r"\A is not supported; write ^", "z": r"\z is not supported; write $"}
_REFUSED_ESCAPES |= {"Z": r"\Z is not supported; write $"}
_REFUSED_GROUPS = {"P=": _REFERENCES, ">": "atomic groups are not supported; write (?:...)"}
_REFUSED_GROUPS |= {"(": "conditions are not supported; write alternatives"}
_FLAGS = "inline flags are not supported; write both cases, as in [aA]"
_LOOKS = {"=": (False, False), "!": (False, True), "<=": (True, False), "<!": (True, True)}


class RegexError(ValueError):
    """The expression is malformed or uses what is not supported; the message says which."""


def parse_full_match(pattern: str) -> Expr:
    """Return the texts that match from their first to their last character.

    Raises:
        RegexError: see the module's description.
    """
    return _parse(pattern, lookaround.full_match)


def parse_search(pattern: str) -> Expr:
    """Return the texts in which the pattern is found somewhere, as JSON schema reads it.

    Raises:
        RegexError: see the module's description.
    """
    return _parse(pattern, lookaround.search)


def _parse(pattern: str, texts: Callable[[Tree], Expr]) -> Expr:
    reader = _RegexParser(pattern)
    tree = reader.alternatives()
    if not reader.at_end():
        raise reader.error("this parenthesis closes nothing")
    try:
        return texts(tree)
    except NotRegular as error:
        raise RegexError(f"regular expression {pattern!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class _LookBehind:
    """A look-behind whose tree is still to be judged by what stands before it."""

    tree: Tree
    is_negated: bool


@dataclass(slots=True)
class _RegexParser:
    """Recursive descent over the characters."""

    text: str
    at: int = 0
    depth: int = 0

    def at_end(self) -> bool:
        return self.at >= len(self.text)

    def sees(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.sees(text):
            return False
        self.at += len(text)
        return True

    def next(self) -> str:
        if self.at_end():
            raise self.error("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def error(self, what: str) -> RegexError:
        return RegexError(f"regular expression {self.text!r}, character {self.at + 1}: {what}")

    def alternatives(self) -> Tree:
        found = [self.row()]
        while self.take("|"):
            found.append(self.row())
        plain = [tree for tree in found if isinstance(tree, Expr)]
        if len(plain) == len(found):
            return regex.union(plain)
        return Disjunction(tuple(found)) if len(found) > 1 else found[0]

    def row(self) -> Tree:
        """Return one alternative; what has no assertion in it is joined to one expression."""
        found: list[Tree] = []
        while not self.at_end() and not self.sees("|") and not self.sees(")"):
            item = self.item()
            if isinstance(item, _LookBehind):
                item = _looked_behind(item, found) or self.refuse_behind()
            if isinstance(item, Expr) and found and isinstance(found[-1], Expr):
                found[-1] = regex.concat([found[-1], item])
            else:
                found.append(item)
        return found[0] if len(found) == 1 else Concatenation(tuple(found)) if found else EPSILON

    def refuse_behind(self) -> Never:
        what = "look-behind for more than one character is supported after ^ and plain parts only"
        raise self.error(f"{what}; write a look-ahead from there, as in ^(?!.*X$)")

    def item(self) -> Tree | _LookBehind:
        found = self.assertion()
        if found is not None:
            if self.quantifier() is not None:
                raise self.error("an anchor or look-around cannot be repeated")
            return found
        tree = self.atom()
        bounds = self.quantifier()
        if bounds is None:
            return tree
        return regex.times(tree, *bounds) if isinstance(tree, Expr) else Quantified(tree, *bounds)

    def assertion(self) -> Tree | _LookBehind | None:
        if self.take("^"):
            return StartAnchor()
        if self.take("$"):
            return EndAnchor()
        if self.take("\\b"):
            return WordBoundary(is_negated=False)
        if self.take("\\B"):
            return WordBoundary(is_negated=True)
        for sign, (is_behind, is_negated) in _LOOKS.items():
            if self.take("(?" + sign):
                tree = self.group()
                return (_LookBehind if is_behind else LookaheadAssertion)(tree, is_negated)
        return None

    def atom(self) -> Tree:
        if self.take("("):
            self.group_kind()
            return self.group()
        if self.take("["):
            return regex.char(self.char_class())
        if self.take("."):
            return regex.char(chars.complement(_LINE_END))
        if self.take("\\"):
            return regex.char(self.escape())
        c = self.next()
        if c in "*+?":
            raise self.error(f"{c!r} has nothing to repeat")
        return regex.char(self.one(c))

    def one(self, c: str) -> Ranges:
        ranges = chars.of(c)
        if not ranges:
            raise self.error("half of a surrogate pair is no character")
        return ranges

    def group(self) -> Tree:
        """Read on to the end of a group that is open."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.error(f"groups are nested more than {MAX_NESTING} deep")
        found = self.alternatives()
        if not self.take(")"):
            raise self.error("a group is not closed")
        self.depth -= 1
        return found

    def group_kind(self) -> None:
        if not self.take("?") or self.take(":"):
            return
        for sign, reason in _REFUSED_GROUPS.items():
            if self.sees(sign):
                raise self.error(reason)
        if not self.take("P<") and not self.take("<"):
            raise self.error(_FLAGS)
        while self.next() != ">":
            pass

    def quantifier(self) -> tuple[int, int | None] | None:
        if self.take("*"):
            bounds: tuple[int, int | None] | None = (0, None)
        elif self.take("+"):
            bounds = (1, None)
        elif self.take("?"):
            bounds = (0, 1)
        else:
            bounds = self.counted()
        if bounds is not None:
            self.take("?")
            if any(self.sees(sign) for sign in "*+?"):
                raise self.error("two quantifiers in a row")
        return bounds

    def counted(self) -> tuple[int, int | None] | None:
        """Read {m}, {m,} or {m,n}; a brace that is none of these is a plain character."""
        if not self.sees("{"):
            return None
        body, closed, _ = self.text[self.at + 1 :].partition("}")
        first, comma, last = body.partition(",")
        if closed and not first and last.isdecimal():
            raise self.error("'{,n}' means different things in different dialects")
        if not closed or not first.isdecimal() or not (last.isdecimal() or not last):
            return None
        self.at += len(body) + 2
        least = int(first)
        most = (int(last) if last else None) if comma else least
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise self.error(f"{{{body}}} is not a repetition of at most {MAX_REPEAT}")
        return least, most

    def escape(self) -> Ranges:
        c = self.next()
        if c in _CLASSES:
            return _CLASSES[c]
        return self.category(c) if c in "pP" else self.one(self.escaped(c))

    def category(self, sign: str) -> Ranges:
        """Return the characters of \\p{...}; what Unicode has not assigned is never among them."""
        name, closed, _ = self.text[self.at + 1 :].partition("}")
        found = chars.category(name) if self.sees("{") and closed else None
        if found is None:
            what = f"the Unicode property {name[:40]!r} is not supported"
            raise self.error(f"{what}; general categories are, as in \\p{{L}} or \\p{{Lu}}")
        self.at += len(name) + 2
        if sign == "p":
            return found
        return chars.intersect(chars.complement(found), chars.assigned())

    def escaped(self, c: str) -> str:
        """Return the character that an escape stands for."""
        if c in _REFUSED_ESCAPES:
            raise self.error(_REFUSED_ESCAPES[c])
        if c in _CONTROLS:
            return _CONTROLS[c]
        if c == "c":
            return chr(ord(self.next()) % 32)
        if c == "x":
            return self.hexadecimal(2)
        if c == "u":
            return self.unicode()
        if c.isalnum():
            raise self.error(f"unknown escape \\{c}")
        return c

    def unicode(self) -> str:
        if self.take("{"):
            digits, closed, _ = self.text[self.at :].partition("}")
            if not closed or not 1 <= len(digits) <= 6:
                raise self.error("malformed \\u{...}")
            found = self.hexadecimal(len(digits))
            self.at += 1
            return found
        high = self.hexadecimal(4)
        if "\ud800" <= high <= "\udbff" and self.take("\\u"):
            low = ord(self.hexadecimal(4))
            return chr(0x10000 + ((ord(high) & 0x3FF) << 10) + (low & 0x3FF))
        return high

    def hexadecimal(self, length: int) -> str:
        digits = self.text[self.at : self.at + length]
        try:
            found = chr(int(digits, 16)) if len(digits) == length and digits.isalnum() else None
        except (ValueError, OverflowError):
            found = None
        if found is None:
            raise self.error(f"{length} hexadecimal digits are missing")
        self.at += length
        return found

    def char_class(self) -> Ranges:
        negated = self.take("^")
        if self.sees("]"):
            raise self.error("'[]' means different things in different dialects")
        pairs: list[tuple[int, int]] = []
        start = self.at
        while not self.take("]"):
            pairs.extend(self.class_part())
        ranges = chars.normalise(pairs)
        if not negated:
            return ranges
        others = chars.complement(ranges)
        has_category = any(sign in self.text[start : self.at] for sign in ("\\p{", "\\P{"))
        return chars.intersect(others, chars.assigned()) if has_category else others

    def class_part(self) -> Ranges:
        first = self.class_atom()
        if not self.sees("-") or self.sees("-]"):
            return first
        self.at += 1
        last = self.class_atom()
        if not (_is_one(first) and _is_one(last)):
            return (*first, *chars.of("-"), *last)
        if last[0][0] < first[0][0]:
            raise self.error("a range is backwards")
        return ((first[0][0], last[0][0]),)

    def class_atom(self) -> Ranges:
        c = self.next()
        if c != "\\":
            return self.one(c)
        return chars.of("\b") if self.take("b") else self.escape()


def _looked_behind(look: _LookBehind, before: list[Tree]) -> Tree | None:
    """Return a look-behind, read into what stands before it where that begins the text."""
    if isinstance(look.tree, Expr) and look.tree.kind == "set":
        return LookbehindAssertion(look.tree.ranges, look.is_negated)
    if not isinstance(look.tree, Expr) or [type(tree) for tree in before] != [StartAnchor, Expr]:
        return None
    ending = regex.concat([ANY_TEXT, look.tree])
    text = before.pop()
    assert isinstance(text, Expr)
    return regex.intersection(text, regex.complement(ending) if look.is_negated else ending)


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
