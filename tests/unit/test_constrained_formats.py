"""Formats: what is written is valid, what is judged is judged right, what is unknown says nothing.

The judges share no code with the expressions: jsonschema-rs, pydantic, and zod's own expressions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Annotated, Any

import jsonschema_rs
import pydantic
import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex_parser import parse_full_match
from plait.decoders.constrained.schema import formats
from plait.decoders.constrained.schema.formats import FORMATS, STANDARD
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    UnsupportedKeyword,
)
from plait.kernels.grammar import DEAD, Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches, spell
from tests.fixtures.random_texts import mangled, texts

# As zod 4 writes them beside the format (its core/regexes.ts, MIT).
ZOD = {
    "cuid": r"^[cC][0-9a-z]{6,}$",
    "cuid2": r"^[0-9a-z]+$",
    "ulid": r"^[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}$",
    "xid": r"^[0-9a-vA-V]{20}$",
    "ksuid": r"^[A-Za-z0-9]{27}$",
    "nanoid": r"^[a-zA-Z0-9_-]{21}$",
    "guid": r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})$",
    "mac": r"^(?:[0-9A-F]{2}:){5}[0-9A-F]{2}$|^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$",
    "cidrv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])\.){3}"
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])\/([0-9]|[1-2][0-9]|3[0-2])$",
    "base64": r"^$|^(?:[0-9a-zA-Z+/]{4})*(?:(?:[0-9a-zA-Z+/]{2}==)|(?:[0-9a-zA-Z+/]{3}=))?$",
    "base64url": r"^[A-Za-z0-9_-]*$",
    "e164": r"^\+[1-9]\d{6,14}$",
    "date": r"^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29"
    r"|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|(?:02)-(?:0[1-9]|1\d|2[0-8])))$",
}
PYDANTIC: dict[str, Any] = {
    "date": date,
    "date-time": datetime,
    "uuid1": pydantic.UUID1,
    "uuid4": pydantic.UUID4,
    "uuid7": pydantic.UUID7,
    "url": pydantic.AnyUrl,
    "multi-host-uri": pydantic.AnyUrl,
    "ipvanyaddress": pydantic.IPvAnyAddress,
    "ipvanyinterface": pydantic.IPvAnyInterface,
    "ipvanynetwork": pydantic.IPvAnyNetwork,
    "ipv4interface": IPv4Interface,
    "ipv6interface": IPv6Interface,
    "ipv4network": IPv4Network,
    "ipv6network": IPv6Network,
    "base64": pydantic.Base64Bytes,
    "base64url": pydantic.Base64UrlBytes,
    "byte": pydantic.Base64Bytes,
    "json-string": pydantic.Json,
}


@cache
def _written(name: str, count: int = 60) -> list[str]:
    longest = FORMATS[name].longest or 400
    found = list(texts(formats.written(name), random.Random(name), count, longest))
    assert len(found) > count / 4
    return found


def _has_format(name: str, text: str) -> bool:
    schema = {"type": "string", "format": name}
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(text)


# jsonschema-rs takes a fraction of a year and a slash for a digit, so another reader has its say.
READERS: dict[str, Callable[[str], object]] = {
    "date": date.fromisoformat,
    "time": lambda text: time.fromisoformat(text.upper()),
    "date-time": lambda text: datetime.fromisoformat(text.upper()),
}


def _is_read(name: str, text: str) -> bool:
    try:
        READERS.get(name, str)(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_what_is_written_is_valid(name: str) -> None:
    assert [text for text in _written(name) if not _has_format(name, text)] == []


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_texts_nearby_are_judged_as_a_validator_does(name: str) -> None:
    draw = random.Random(name)
    starts = [*_written(name), *_known_valid(name)]
    nearby = [*starts, *(mangled(text, draw) for text in starts for _ in range(3))]
    valid, possible = formats.valid(name), formats.possible(name)

    for text in nearby:
        if regex.matches(valid, text):
            assert _has_format(name, text), text
        elif not regex.matches(possible, text):
            assert not _has_format(name, text) or not _is_read(name, text), text


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_set_is_inside_the_next(name: str) -> None:
    assert all(regex.matches(formats.valid(name), text) for text in _written(name))
    assert all(regex.matches(formats.possible(name), text) for text in _known_valid(name))


@cache
def _known_valid(name: str) -> list[str]:
    known = FORMATS[name]
    expr = parse_full_match(known.valid or known.written)
    return [t for t in texts(expr, random.Random(name), 60) if len(t) <= (known.longest or 400)]


@pytest.mark.parametrize("name", sorted(ZOD))
def test_what_is_written_is_valid_for_zod(name: str) -> None:
    assert [text for text in _written(name) if not re.fullmatch(ZOD[name], text)] == []


@pytest.mark.parametrize("name", sorted(PYDANTIC))
def test_what_is_written_is_valid_for_pydantic(name: str) -> None:
    adapter = pydantic.TypeAdapter(PYDANTIC[name])
    for text in _written(name):
        adapter.validate_python(text)


def _automaton(schema: Any) -> Automaton:
    spec = ConstraintSpec("json_schema", json.dumps(schema))
    return automaton_of(lower(spec, ConstraintLimits()))


def _accepts(automaton: Automaton, value: Any) -> bool:
    return matches(automaton, json.dumps(value, ensure_ascii=False).encode())


def _text(format_name: str, **others: Any) -> dict[str, Any]:
    return {"type": "string", "format": format_name, **others}


CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    # beside fixed texts
    (_text("date", enum=["2023-02-28", "2023-02-29", "today"]), ["2023-02-28"], ["2023-02-29"]),
    (_text("date", enum=["0001-01-01"]), ["0001-01-01"], []),  # Go's zero, which is never made up
    (_text("date"), ["1000-01-01", "2000-02-29"], ["0001-01-01", "1900-02-29"]),
    (_text("time", const="12:00:00.5z"), ["12:00:00.5z"], ["12:00:00.5Z"]),
    (_text("email", enum=["me@localhost", "nobody"]), ["me@localhost"], ["nobody", "you@x.org"]),
    (_text("uri", const="ftp://user@host:21/a?b#c"), ["ftp://user@host:21/a?b#c"], []),
    (_text("color", enum=["red", "#fff"]), ["red", "#fff"], ["#ffffff"]),
    # negated
    ({"type": "string", "not": {"format": "ipv4"}}, ["1.2.3", "::1"], ["1.2.3.4"]),
    ({"type": "string", "not": {"format": "email"}}, ["me"], ["me@x.org", "me@localhost"]),
    (
        {"oneOf": [_text("date"), _text("date-time")]},
        ["2024-02-29", "2024-02-29T00:00:00Z"],
        ["2023-02-29", "x"],
    ),
    # unknown: an annotation
    (_text("iso-4217", pattern="^[A-Z]{3}$"), ["EUR"], ["eur"]),
    (_text("password", minLength=3), ["abc"], ["ab"]),
    ({"type": "string", "not": {"format": "iso-4217"}, "enum": ["a"]}, [], ["a"]),
    # numbers, written as strings
    (_text("uint64"), ["0", "18446744073709551615"], ["18446744073709551616", "-1", "01", "x"]),
    (_text("int8"), ["-128", "127"], ["128", "-129", "-0", "1.0"]),
    (_text("decimal"), ["1.50", "-0.1", "7"], ["1e3", ".5", ""]),
    # lengths beside them
    (_text("uri", minLength=1, maxLength=12), ["http://a.b/c"], ["http://a.b/cd"]),
    (_text("hostname", maxLength=5), ["a.b-c"], ["a.b-cd", "a--b"]),
]


@pytest.mark.parametrize(("schema", "accepted", "refused"), CASES)
def test_texts_of_schemas_with_formats(
    schema: dict[str, Any], accepted: list[str], refused: list[str]
) -> None:
    try:
        automaton = _automaton(schema)
    except UnsupportedKeyword:
        raise
    except ConstraintError:
        assert not accepted
        return

    assert [text for text in accepted if not _accepts(automaton, text)] == []
    assert [text for text in refused if _accepts(automaton, text)] == []


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("ipv4", "ipv6"),
        ("date", "date-time"),
        ("date", "time"),
        ("email", "uri"),
        ("uuid", "uri"),
        ("hostname", "uri"),
        ("email", "idn-hostname"),
        ("duration", "json-pointer"),
    ],
)
def test_one_of_two_formats(left: str, right: str) -> None:
    schema = {"type": "string", "oneOf": [{"format": left}, {"format": right}]}
    automaton = _automaton(schema)
    judge = jsonschema_rs.validator_for(schema, validate_formats=True)

    for name in (left, right):
        valid = [text for text in _written(name) if judge.is_valid(text)]
        accepted = [text for text in _written(name) if _accepts(automaton, text)]
        assert set(accepted) <= set(valid)
        assert len(accepted) > len(valid) / 2


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("int32", [-(2**31), 2**31 - 1], [2**31, -(2**31) - 1]),
        ("uint8", [0, 255], [256, -1]),
        ("double", [1.5, 10**18], []),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_numbers_of_a_size(name: str, accepted: list[Any], refused: list[Any], order: int) -> None:
    members = [("type", "number"), ("format", name), ("minimum", -(2**40)), ("maximum", 2**60)]
    automaton = _automaton(dict(members[::order]))

    assert all(_accepts(automaton, value) for value in accepted)
    assert not any(_accepts(automaton, value) for value in refused)


@pytest.mark.parametrize(
    "schema",
    [
        _text("uri", const="http://[::1]/"),  # an address in brackets: right, but not judged here
        _text("idn-email", enum=["me@x.org", "é@x.org"]),
        {"type": "string", "not": {"format": "cuid2"}},  # to a validator nothing is left
    ],
)
def test_what_cannot_be_judged_is_refused_by_its_name(schema: Any) -> None:
    with pytest.raises(UnsupportedKeyword) as caught:
        _automaton(schema)

    assert caught.value.keyword in ("format", "not")


def test_keys_may_have_a_format() -> None:
    schema = {"type": "object", "propertyNames": {"format": "uuid"}, "additionalProperties": True}
    automaton = _automaton(schema)

    assert _accepts(automaton, {"12345678-1234-1234-1234-123456789abc": 1})
    assert not _accepts(automaton, {"12345678": 1})


@pytest.mark.parametrize("value", [3, None, ["date"]])
def test_a_format_is_a_string(value: Any) -> None:
    with pytest.raises(UnsupportedKeyword, match=r"format.*must be a string"):
        _automaton({"type": "string", "format": value})


DAY = (
    r"(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29"
    r"|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|(?:02)-(?:0[1-9]|1\d|2[0-8])))"
)
CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
BESIDE = [  # formats with zod's own expression for them
    (
        "email",
        r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
        r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        "a.b@c-d.org",
        "a!b@c.org",
    ),
    ("email", r"^[^\s@\"]{1,64}@[^\s@]{1,255}$", "me@x.org", "me@x..org"),
    (
        "hostname",
        r"^(?=.{1,253}$)([a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]{2,63}$",
        "a-b.org",
        "localhost",
    ),
    (
        "uuid",
        r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$",
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5d-ac96-474b-bcce-b302099a8057",
    ),
    (
        "date-time",
        rf"^{DAY}T(?:{CLOCK}(?:Z))$",
        "2024-02-29T00:00:00Z",
        "2024-02-29T00:00:00+01:00",
    ),
    ("date-time", rf"^{DAY}T(?:{CLOCK}(?:Z)?)$", "2024-02-29T00:00:00.5Z", "2024-02-29T00:00:00"),
    (
        "duration",
        r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
        r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$",
        "P1Y2MT3H",
        "PT0.5S",
    ),
    (
        "ipv4",
        r"^(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])\.){3}"
        r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])$",
        "10.0.0.255",
        "10.0.0.256",
    ),
]


@pytest.mark.parametrize(("name", "pattern", "accepted", "refused"), BESIDE)
def test_a_format_beside_its_pattern(name: str, pattern: str, accepted: str, refused: str) -> None:
    schema = _text(name, pattern=pattern)
    automaton = _automaton(schema)
    judge = jsonschema_rs.validator_for(schema, validate_formats=True)

    assert _accepts(automaton, accepted)
    assert judge.is_valid(accepted)
    assert not _accepts(automaton, refused)


@pytest.mark.parametrize(
    "schema",
    [
        _text("uri", minLength=1, maxLength=2083),
        _text("email", maxLength=254),
        _text("hostname", pattern="^[a-z]", minLength=3, maxLength=40),
        _text("date-time", pattern="Z$", maxLength=30),
    ],
)
def test_the_shortest_text_of_a_format_with_lengths_is_valid(schema: dict[str, Any]) -> None:
    automaton = _automaton(schema)
    text = spell(automaton.closing_tokens(automaton.start)).decode()

    assert jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(json.loads(text))


class Everything(pydantic.BaseModel):
    """The types whose JSON Schema has a format."""

    secret: pydantic.SecretStr
    raw: bytes
    path: pydantic.FilePath
    encoded: pydantic.Base64Str
    network: pydantic.IPvAnyNetwork
    dsn: pydantic.PostgresDsn
    pattern: re.Pattern[str]
    payload: pydantic.Json[Any]
    version: pydantic.UUID7
    site: pydantic.HttpUrl
    when: pydantic.AwareDatetime
    age: timedelta
    size: pydantic.ByteSize
    price: Annotated[Decimal, pydantic.Field(max_digits=8, decimal_places=2)]


def test_a_model_of_pydantic_with_all_kinds_of_formats_compiles() -> None:
    assert _automaton(Everything.model_json_schema()).start != DEAD
