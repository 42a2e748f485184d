"""Read ECMA-262 regular expressions, the dialect of JSON schema, and refuse by name what is not
regular or not certain.

Lazy quantifiers match the same texts as greedy ones and are read as such. Refused: look-around,
back references, word boundaries, named groups' references, Unicode properties, inline flags, what
other dialects read differently, and ^ or $ where they are not at an end of the whole expression.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.decoders.constrained.grammar import chars, regex
from plait.decoders.constrained.grammar.nodes import Ranges
from plait.decoders.constrained.grammar.regex import EPSILON, EVERYTHING, Expr

MAX_REPEAT = 100_000
MAX_NESTING = 64

_DIGIT = chars.normalise([(0x30, 0x39)])
_WORD = chars.normalise([(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0x5F, 0x5F)])
_SPACE = chars.normalise(
    [*chars.of("\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), (0x2000, 0x200A)]
)
_LINE_END = chars.of("\n\r\u2028\u2029")
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CLASSES |= {name.upper(): chars.complement(found) for name, found in _CLASSES.items()}
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_REFUSED_ESCAPES = {"b": "word boundaries", "B": "word boundaries", "p": "Unicode properties"}
_REFUSED_ESCAPES |= {"P": "Unicode properties", "k": "back references"}
_REFUSED_ESCAPES |= dict.fromkeys("123456789", "back references")
_REFUSED_GROUPS = {"=": "look-ahead", "!": "look-ahead", "<=": "look-behind", "<!": "look-behind"}


class RegexError(ValueError):
    """The expression is malformed or uses what is not supported; the message says which."""


@dataclass(frozen=True, slots=True)
class _Anchored:
    """An alternative and which of its ends are tied to the ends of the text."""

    expr: Expr
    at_start: bool
    at_end: bool


def parse_whole(pattern: str) -> Expr:
    """Return the texts that match from their first to their last character.

    Raises:
        RegexError: see the module's description.
    """
    return regex.union(part.expr for part in _parse(pattern))


def parse_search(pattern: str) -> Expr:
    """Return the texts in which the pattern is found somewhere, as JSON schema reads it.

    Raises:
        RegexError: see the module's description.
    """
    return regex.union(
        regex.concat(
            [
                EPSILON if part.at_start else EVERYTHING,
                part.expr,
                EPSILON if part.at_end else EVERYTHING,
            ]
        )
        for part in _parse(pattern)
    )


def _parse(pattern: str) -> list[_Anchored]:
    reader = _Reader(pattern)
    found = reader.alternatives()
    if not reader.at_end():
        raise reader.error("this parenthesis closes nothing")
    return found


@dataclass(slots=True)
class _Reader:
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

    def alternatives(self) -> list[_Anchored]:
        found = self.row()
        while self.take("|"):
            found += self.row()
        return found

    def row(self) -> list[_Anchored]:
        """Return one alternative, or several when a group with anchors had to be spread out."""
        found = [_Anchored(EPSILON, at_start=False, at_end=False)]
        while not self.at_end() and not self.sees("|") and not self.sees(")"):
            item = self.item()
            found = [self.join(left, right) for left in found for right in item]
        return found

    def join(self, left: _Anchored, right: _Anchored) -> _Anchored:
        """Return left then right; an anchor may only stand at the outside."""
        if right.at_start and left.expr is not EPSILON:
            raise self.error("'^' is only supported at the start")
        if left.at_end and right.expr is not EPSILON:
            raise self.error("'$' is only supported at the end")
        expr = regex.concat([left.expr, right.expr])
        return _Anchored(
            expr,
            at_start=left.at_start or right.at_start,
            at_end=left.at_end or right.at_end,
        )

    def item(self) -> list[_Anchored]:
        if self.take("^"):
            return [_Anchored(EPSILON, at_start=True, at_end=False)]
        if self.take("$"):
            return [_Anchored(EPSILON, at_start=False, at_end=True)]
        found = self.atom()
        bounds = self.quantifier()
        if bounds is None:
            return found
        if any(part.at_start or part.at_end for part in found):
            raise self.error("'^' and '$' cannot be repeated")
        expr = regex.times(regex.union(part.expr for part in found), *bounds)
        return [_Anchored(expr, at_start=False, at_end=False)]

    def atom(self) -> list[_Anchored]:
        if self.take("("):
            return self.group()
        if self.take("["):
            return _plain(self.char_class())
        if self.take("."):
            return _plain(chars.complement(_LINE_END))
        if self.take("\\"):
            return _plain(self.escape())
        c = self.next()
        if c in "*+?":
            raise self.error(f"{c!r} has nothing to repeat")
        return _plain(self.one(c))

    def one(self, c: str) -> Ranges:
        ranges = chars.of(c)
        if not ranges:
            raise self.error("half of a surrogate pair is no character")
        return ranges

    def group(self) -> list[_Anchored]:
        self.group_kind()
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.error(f"groups are nested more than {MAX_NESTING} deep")
        found = self.alternatives()
        if not self.take(")"):
            raise self.error("a group is not closed")
        self.depth -= 1
        if any(part.at_start or part.at_end for part in found):
            return found
        return [_Anchored(regex.union(p.expr for p in found), at_start=False, at_end=False)]

    def group_kind(self) -> None:
        if not self.take("?") or self.take(":"):
            return
        for sign, name in _REFUSED_GROUPS.items():
            if self.sees(sign):
                raise self.error(f"{name} is not supported")
        if not self.take("<"):
            raise self.error("inline flags are not supported")
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
        return self.one(self.escaped(c))

    def escaped(self, c: str) -> str:
        """Return the character that an escape stands for."""
        if c in _REFUSED_ESCAPES:
            raise self.error(f"{_REFUSED_ESCAPES[c]} are not supported")
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
        while not self.take("]"):
            pairs.extend(self.class_part())
        ranges = chars.normalise(pairs)
        return chars.complement(ranges) if negated else ranges

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


def _plain(ranges: Ranges) -> list[_Anchored]:
    return [_Anchored(regex.char(ranges), at_start=False, at_end=False)]


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
