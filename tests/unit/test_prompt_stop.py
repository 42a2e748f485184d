"""Stop strings: which one ends the text, what is held back, what is included."""

from __future__ import annotations

import pytest

from plait.server.prompt.stop import StopScanner, StopStrings


def scan(text: str, stops: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    """Feed a text character by character; return what each released, and the match."""
    scanner = StopScanner(StopStrings(stops), include=include)
    pieces = [scanner.push(char) for char in text]
    return [*pieces, scanner.finish()], scanner.matched


@pytest.mark.parametrize(
    ("text", "stops", "want", "matched"),
    [
        ("hello world", ["xyz"], "hello world", None),
        ("hello END world", ["END"], "hello ", "END"),
        ("aaab", ["aab"], "a", "aab"),
        ("abcabd", ["abd"], "abc", "abd"),
        ("abcd", ["bc", "abcd"], "a", "bc"),  # complete first
        ("abcd", ["d", "bcd"], "a", "bcd"),  # complete together: the longer
        ("ushers", ["he", "she", "his", "hers"], "u", "she"),
        ("xab", ["ab", "xabc"], "x", "ab"),  # a stop string within a prefix of another
        ("END", ["END"], "", "END"),
        ("EN", ["END"], "EN", None),
    ],
)
def test_what_ends_the_text(text: str, stops: list[str], want: str, matched: str | None) -> None:
    pieces, have = scan(text, stops)
    assert ("".join(pieces), have) == (want, matched)


def test_the_stop_string_can_be_included() -> None:
    pieces, matched = scan("hello END world", ["END"], include=True)
    assert ("".join(pieces), matched) == ("hello END", "END")


def test_only_a_possible_beginning_is_held() -> None:
    pieces, _ = scan("aENxEND", ["END"])
    assert pieces == ["a", "", "", "ENx", "", "", "", ""]


def test_nothing_follows_a_match() -> None:
    scanner = StopScanner(StopStrings(["b"]))
    assert scanner.push("abc") == "a"
    assert scanner.push("abc") == ""
    assert scanner.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
