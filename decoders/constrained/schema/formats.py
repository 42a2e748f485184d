"""The formats that are enforced, each as a regular expression that accepts only valid texts.

What is written may be narrower than the standard (no comments in e-mail addresses, no leap
seconds), never wider: it is valid by the RFC named beside it. A format that is not listed here is
an annotation and asserts nothing (2020-12, validation 7.2); to a validator so are the formats
under `_OTHERS`, which libraries write for their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from msgspec.structs import replace

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_CHAR, ANY_TEXT, Expr
from plait.decoders.constrained.grammar.regex_parser import parse_full_match
from plait.decoders.constrained.schema.facts import NUMBERS, Bound, Facts
from plait.decoders.constrained.schema.numbers import number_text
from plait.decoders.constrained.spec import Formats

ANYTHING = r"[\s\S]*"


@dataclass(frozen=True, slots=True)
class Format:
    """Three sets of texts, each inside the next, as expressions that hold for whole texts.

    written: what answers are made of; with `longest`, no longer than that.
    valid: what is known to have the format; None: what is written.
    possible: what may have it; the rest certainly does not; None: what is valid, which is exact.
    """

    written: str
    valid: str | None = None
    possible: str | None = None
    longest: int | None = None


_MONTH_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP = r"(?:0[48]|[2468][048]|[13579][26])"
# Without the years before 1000, which some languages cannot hold.
_LEAP_DAY = rf"(?:[1-9]\d{_LEAP}|(?:[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:[1-9]\d{{3}}-{_MONTH_DAY}|{_LEAP_DAY})"
_ANY_LEAP_DAY = rf"(?:\d\d{_LEAP}|(?:[02468][048]|[13579][26])00)-02-29"
_ANY_DATE = rf"(?:\d{{4}}-{_MONTH_DAY}|{_ANY_LEAP_DAY})"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d"
_OFFSET = r"[+-](?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_CLOCK}(?:\.\d{{1,9}})?(?:Z|{_OFFSET})"
_ANY_TIME = rf"{_CLOCK}(?:\.\d+)?(?:[Zz]|{_OFFSET})"
_LEAP_TIME = rf"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[Zz]|{_OFFSET})"
_TIMES = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DATES = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"
# No two hyphens in a row, so that no label is a broken A-label. With at most 63 characters in the
# whole name, none of its labels is too long.
_LABEL = r"[A-Za-z0-9](?:-?[A-Za-z0-9])*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_DOMAIN = rf"(?:{_LABEL}\.)+[A-Za-z]{{2,}}"
_BOUNDED_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9]{1,62})?"
_BOUNDED_HOST = rf"{_BOUNDED_LABEL}(?:\.{_BOUNDED_LABEL}){{0,3}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_EMAIL = rf"{_ATOM}+(?:\.{_ATOM}+)*@{_DOMAIN}"
_BOUNDED_EMAIL = rf"{_ATOM}{{1,20}}(?:\.{_ATOM}{{1,20}}){{0,2}}@{_BOUNDED_HOST}"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        rf"(?:{_H16}:){{7}}{_H16}",
        rf"(?:{_H16}:){{1,7}}:",
        *(rf"(?:{_H16}:){{1,{7 - k}}}(?::{_H16}){{1,{k}}}" for k in range(1, 7)),
        rf":(?::{_H16}){{1,7}}",
        "::",
    ]
)
_BITS_32 = r"(?:3[0-2]|[12]?\d)"
_BITS_128 = r"(?:12[0-8]|1[01]\d|[1-9]?\d)"
_CIDR_V4, _CIDR_V6 = rf"{_IPV4}/{_BITS_32}", rf"(?:{_IPV6})/{_BITS_128}"
# Networks, unlike addresses with a prefix, have no bits behind it.
_NET_V4 = rf"(?:{_IPV4}/32|(?:{_OCTET}\.){{3}}0/24|(?:{_OCTET}\.){{2}}0\.0/16|{_OCTET}\.0\.0\.0/8)"
_NET_V6 = (
    rf"(?:(?:{_IPV6})/128|(?:{_H16}:){{1,4}}:/64|(?:{_H16}:){{1,3}}:/48|(?:{_H16}:){{1,2}}:/32)"
)
_URI_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(?:/{_URI_CHAR}*)*(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
# A last label that begins with a letter: readers of the web take a number for an IPv4 address.
_WEB_HOST = rf"(?:(?:{_LABEL}\.)*[A-Za-z](?:-?[A-Za-z0-9])*|{_IPV4})"
_AUTHORITY = rf"{_WEB_HOST}(?::(?:[1-9]\d{{0,3}}|[1-5]\d{{4}}))?"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:"
_URI = rf"{_SCHEME}(?://{_AUTHORITY}{_TAIL}|{_URI_CHAR}+{_TAIL})|file:///{_URI_CHAR}+{_TAIL}"
_FRAGMENT = rf"#(?:{_URI_CHAR}|[/?])*"
_REFERENCE = rf"(?:{_URI}|/(?:{_URI_CHAR}+{_TAIL})?|(?:[A-Za-z0-9._~-]+{_TAIL})?|{_FRAGMENT})"
_USER = r"(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?"
_REG_NAME = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HIERARCHY = (
    rf"(?://{_USER}{_REG_NAME}(?::\d*)?(?:/{_URI_CHAR}*)*|/?(?:{_URI_CHAR}+(?:/{_URI_CHAR}*)*)?)"
)
_ANY_URI = rf"{_SCHEME}{_HIERARCHY}(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
_TEMPLATE = rf"(?:{_URI_CHAR}|/|\{{[A-Za-z][A-Za-z0-9_]*\}})*"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_HEX_UUID = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-%s[0-9A-Fa-f]{3}-%s[0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}"
_UUID = _HEX_UUID % ("[0-9A-Fa-f]", "[0-9A-Fa-f]")
# ECMA-262 patterns whose groups are nested at most three deep.
_ESCAPED = r"\\(?:[dDwWsStnrfv.^$|?*+()\[\]{}/\\-]|x[0-9A-Fa-f]{2})"
_RANGES = "a-z|A-Z|0-9|1-9|0-7|a-f|A-F"
_IN_CLASS = rf"(?:{_RANGES}|{_ESCAPED}|[^\\\[\]^\x00-\x1f-])"
_ATOMS = rf"(?:[^\\\^$.*+?()\[\]{{}}|\x00-\x1f]|\.|{_ESCAPED}|\[\^?-?{_IN_CLASS}+-?\])"
_TO = "|".join([r"\d,[1-9]\d{1,3}", *(f"{n},[{n}-9]" for n in range(10))])
_COUNTED = rf"(?:[*+?]|\{{(?:\d{{1,3}},?|{_TO})\}})\??"


def _pattern(depth: int) -> str:
    """Return the patterns whose groups are nested so deep at most."""
    terms = [rf"{_ATOMS}(?:{_COUNTED})?", r"\^|\$|\\[bB]"]
    if depth:
        inner = _pattern(depth - 1)
        terms += [rf"\((?:\?:)?{inner}\)(?:{_COUNTED})?", rf"\(\?[=!]{inner}\)"]
    return rf"(?:{'|'.join(terms)}|\|)*"


_REGEX = _pattern(3)
_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_BASE64_URL = r"[A-Za-z0-9_-]"
_JSON_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_JSON_SCALAR = rf"(?:{_JSON_STRING}|-?(?:0|[1-9]\d{{0,14}})(?:\.\d{{1,9}})?|true|false|null)"
_JSON_LIST = rf"\[(?:{_JSON_SCALAR}(?:, ?{_JSON_SCALAR})*)?\]"
_JSON_MEMBER = rf"{_JSON_STRING}: ?(?:{_JSON_SCALAR}|{_JSON_LIST})"
_JSON = rf"(?:{_JSON_SCALAR}|{_JSON_LIST}|\{{(?:{_JSON_MEMBER}(?:, ?{_JSON_MEMBER})*)?\}})"

_HAS_AT = r"[\s\S]+@[\s\S]+"
STANDARD: Mapping[str, Format] = {
    "date": Format(_DATE, _ANY_DATE),  # RFC 3339
    "time": Format(_TIME, _ANY_TIME, _LEAP_TIME),
    "date-time": Format(
        rf"{_DATE}T{_TIME}", rf"{_ANY_DATE}[Tt]{_ANY_TIME}", rf"{_ANY_DATE}[Tt]{_LEAP_TIME}"
    ),
    "duration": Format(rf"P(?:{_DATES}(?:{_TIMES})?|{_TIMES}|\d+W)"),  # RFC 3339 appendix A
    "email": Format(_EMAIL, _BOUNDED_EMAIL, _HAS_AT, 64),  # RFC 5321
    "idn-email": Format(_EMAIL, _BOUNDED_EMAIL, _HAS_AT, 64),  # RFC 6531
    "hostname": Format(_HOST, _BOUNDED_HOST, r"[A-Za-z0-9.-]+", 63),  # RFC 1123
    "idn-hostname": Format(_HOST, _BOUNDED_HOST, r"[^\s@/:]+", 63),  # RFC 5890
    "ipv4": Format(_IPV4),  # RFC 2673
    "ipv6": Format(
        _IPV6, possible=r"(?:[0-9A-Fa-f.]*:){2,8}[0-9A-Fa-f.]*"
    ),  # RFC 4291, without embedded IPv4
    "uuid": Format(_UUID),  # RFC 4122
    "uri": Format(_URI, _ANY_URI, rf"{_SCHEME}[!-~]*"),  # RFC 3986
    "uri-reference": Format(_REFERENCE, rf"(?:{_REFERENCE}|{_ANY_URI})", r"[!-~]*"),
    "iri": Format(_URI, _ANY_URI, rf"{_SCHEME}[\s\S]*"),  # RFC 3987
    "iri-reference": Format(_REFERENCE, rf"(?:{_REFERENCE}|{_ANY_URI})", ANYTHING),
    "uri-template": Format(_TEMPLATE, possible=ANYTHING),  # RFC 6570
    "json-pointer": Format(_POINTER),  # RFC 6901
    "relative-json-pointer": Format(rf"(?:0|[1-9]\d*)(?:#|{_POINTER})"),
    "regex": Format(_REGEX, possible=ANYTHING),  # ECMA-262
}
# Written for types of pydantic and zod, or registered for OpenAPI.
_OTHERS: Mapping[str, str] = {
    **{f"uuid{v}": _HEX_UUID % (v, "[89ABab]") for v in "1345678"},
    "guid": _UUID,
    "url": rf"(?:https?|wss?|ftp)://{_AUTHORITY}{_TAIL}",
    "multi-host-uri": rf"{_SCHEME}//{_AUTHORITY}{_TAIL}",
    "name-email": _EMAIL,
    "date-time-local": rf"{_DATE}T{_CLOCK}(?:\.\d{{1,9}})?",
    "time-local": rf"{_CLOCK}(?:\.\d{{1,9}})?",
    "ipvanyaddress": rf"(?:{_IPV4}|{_IPV6})",
    **dict.fromkeys(("cidrv4", "ipv4interface"), _CIDR_V4),
    **dict.fromkeys(("cidrv6", "ipv6interface"), _CIDR_V6),
    "ipvanyinterface": rf"(?:{_CIDR_V4}|{_CIDR_V6})",
    "ipv4network": _NET_V4,
    "ipv6network": _NET_V6,
    "ipvanynetwork": rf"(?:{_NET_V4}|{_NET_V6})",
    "mac": r"(?:[0-9A-F]{2}(?::[0-9A-F]{2}){5}|[0-9a-f]{2}(?::[0-9a-f]{2}){5})",
    **dict.fromkeys(("byte", "base64"), _BASE64),  # RFC 4648
    "base64url": rf"(?:{_BASE64_URL}{{4}})*",  # whole groups: right with padding and without
    "e164": r"\+[1-9]\d{6,14}",
    "jwt": rf"eyJ{_BASE64_URL}+\.eyJ{_BASE64_URL}+\.{_BASE64_URL}+",
    "nanoid": rf"{_BASE64_URL}{{21}}",
    "cuid": r"c[0-9a-z]{24}",
    "cuid2": r"[a-z][0-9a-z]{23}",
    "ulid": r"[0-7][0-9A-HJKMNP-TV-Z]{25}",
    "xid": r"[0-9a-v]{20}",
    "ksuid": r"[0-9A-Za-z]{27}",
    "hex": r"[0-9A-Fa-f]+",
    "color": r"#[0-9A-Fa-f]{6}",
    "char": r"[\s\S]",
    "json-string": _JSON,
}
FORMATS: Mapping[str, Format] = {
    **STANDARD,
    **{name: Format(text, ANYTHING, ANYTHING) for name, text in _OTHERS.items()},
}
# Of numbers, and of strings that hold one: the least and the largest, None where every number fits.
NUMBER_FORMATS: Mapping[str, tuple[int, int] | None] = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("unixtime", "unix-time"), (-(2**63), 2**63 - 1)),
    "double-int": (-(2**53) + 1, 2**53 - 1),
    **dict.fromkeys(("float", "double", "decimal")),
}


def asserted(formats: Formats | None) -> frozenset[str]:
    """Return the names of the formats that are enforced."""
    if formats == "annotate":
        return frozenset()
    return frozenset(STANDARD if formats == "standard" else FORMATS.keys() | NUMBER_FORMATS.keys())


def with_formats(facts: Facts) -> Facts:
    """Return the facts with the texts and lengths that their formats leave instead of these."""
    text, longest = facts.text, facts.max_length
    for name in facts.formats:
        text = regex.intersection(text, written(name))
        most = FORMATS[name].longest if name in FORMATS else None
        longest = min((n for n in (most, longest) if n is not None), default=None)
    return replace(facts, text=text, max_length=longest, formats=())


@lru_cache
def written(name: str) -> Expr:
    """Return the texts that a string of the format is made of, whatever their length."""
    if name in FORMATS:
        return parse_full_match(FORMATS[name].written)
    if NUMBER_FORMATS[name] is None:
        return number_text(Facts(kinds=NUMBERS))
    return number_text(replace(number_bounds(name), kinds=frozenset({"integer"})))


@lru_cache
def valid(name: str) -> Expr:
    """Return texts that certainly have the format."""
    known = FORMATS.get(name)
    if known is None:
        return ANY_TEXT
    short = regex.intersection(written(name), regex.times(ANY_CHAR, 0, known.longest))
    return short if known.valid is None else regex.union([short, parse_full_match(known.valid)])


@lru_cache
def possible(name: str) -> Expr:
    """Return the texts that may have the format; all others certainly don't."""
    known = FORMATS.get(name)
    if known is None:
        return ANY_TEXT
    return valid(name) if known.possible is None else parse_full_match(known.possible)


def is_exact(name: str) -> bool:
    """Tell whether every text is known to have the format or not."""
    return valid(name) is possible(name)


def number_bounds(name: str) -> Facts:
    """Return the range of a format of numbers."""
    limits = NUMBER_FORMATS[name]
    if limits is None:
        return Facts()
    low, high = (Bound(Decimal(limit), is_open=False) for limit in limits)
    return Facts(low=low, high=high)
