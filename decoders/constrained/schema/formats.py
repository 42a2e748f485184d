"""The formats that are enforced, each as a regular expression that accepts only valid texts.

Expressions may be narrower than the standard (no comments in e-mail addresses, no leap seconds),
never wider: what they match is valid by the RFC named beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

_YEAR = r"\d{4}"
_MONTH_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP_DAY = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:{_YEAR}-{_MONTH_DAY}|{_LEAP_DAY})"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_PLAIN_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9]{1,62})?"
_HOST = rf"{_PLAIN_LABEL}(?:\.{_PLAIN_LABEL}){{0,3}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
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
_URI_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = rf"{_HOST}(?::\d{{1,5}})?"
_TAIL = rf"(?:/{_URI_CHAR}*)*(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:(?://{_AUTHORITY}{_TAIL}|{_URI_CHAR}+{_TAIL})"
_REFERENCE = rf"(?:{_URI}|/(?:{_URI_CHAR}+{_TAIL})?|(?:[A-Za-z0-9._~-]+{_TAIL})?)"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_TIMES = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DATES = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"

FORMATS: Mapping[str, str] = {
    "date": _DATE,  # RFC 3339
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(?:{_DATES}(?:{_TIMES})?|{_TIMES}|\d+W)",  # RFC 3339 appendix A
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@{_HOST}",  # RFC 5321
    "hostname": _HOST,  # RFC 1123; no hyphens, so that no label is a broken A-label
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",  # RFC 2673
    "ipv6": rf"(?:{_IPV6})",  # RFC 4291, without embedded IPv4
    "uuid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",  # RFC 4122
    "uri": _URI,  # RFC 3986
    "uri-reference": _REFERENCE,
    "iri": _URI,
    "iri-reference": _REFERENCE,
    "json-pointer": _POINTER,  # RFC 6901
    "relative-json-pointer": rf"(?:0|[1-9]\d*)(?:#|{_POINTER})",
    "byte": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",  # RFC 4648
}
# OpenAPI's sized numbers: bits of a signed integer, None where every number fits.
NUMBER_FORMATS: Mapping[str, int | None] = {
    "int32": 32,
    "int64": 64,
    "float": None,
    "double": None,
}
