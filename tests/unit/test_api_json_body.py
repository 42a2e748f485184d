"""The JSON reader accepts what RFC 8259 says, once; the depth check is exact and linear."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.server.api.json_body import parse_json
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings

DEPTH = 8
LIMITS = LimitSettings(max_json_depth=DEPTH, max_json_values=100, max_json_names=9)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(value=JSON, ascii_only=st.booleans())
def test_reads_what_was_written_unless_it_is_too_deep(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if depth_of(value) <= DEPTH:
        assert parse_json(body, LIMITS) == value
    else:
        with pytest.raises(BadRequest, match="nested"):
            parse_json(body, LIMITS)


@given(body=st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_bad_request(body: bytes) -> None:
    try:
        value = parse_json(body, LIMITS)
    except BadRequest as error:
        assert error.code == "invalid_json"
    else:
        assert value == json.loads(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": 1, "a": 1}', "the name 'a' twice"),
        (b'[{"b": {"a": 1, "a": 2}}]', "the name 'a' twice"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e400", "too large"),
        (b"9" * 41, "too large"),
        (b'"\\ud800"', "unpaired surrogate"),
        (b'{"\\udc00": 1}', "unpaired surrogate"),
        (b'"\xff"', "UTF-8"),
        ("\ufeff{}".encode(), "line 1 column 1"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b"", "line 1 column 1"),
        (b"[1,]", "line 1 column 4"),
        (b"[[[[[[[[[]]]]]]]]]", "deeper than 8"),
        (b"]", "brackets"),
        (b"[" + b"1," * 100 + b"1]", "more than about 100 values"),
        (json.dumps({str(i): i for i in range(10)}).encode(), "more than 9 names"),
    ],
)
def test_what_readers_might_disagree_on_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse_json(body, LIMITS)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (b'"\\ud83e\\udd8a"', "🦊"),
        (b'"[[[[[[[[[["', "[" * 10),
        (b'"\\"[[[[[[[[[["', '"' + "[" * 10),
        (b"[[],[],{},[[]]]", [[], [], {}, [[]]]),
        (b"-0", 0),
        (b"18446744073709551615", 2**64 - 1),
    ],
)
def test_what_looks_odd_but_is_fine(body: bytes, want: Any) -> None:
    assert parse_json(body, LIMITS) == want


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2**23,
        b"[]," * 2**21,
        b'"' + b'\\"' * 2**22,
        b'"' * 2**23,
        b"[" * 8 + b"[]," * 2**20,
        b'{"a":' * 2**20,
        b'{"n":' + b"1" * 2**22 + b"}",
        b'"' + b"\\ud800" * 2**20 + b'"',
    ],
)
def test_eight_hostile_megabytes_take_linear_time(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_json(body, LimitSettings())
