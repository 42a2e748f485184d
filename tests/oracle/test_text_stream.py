"""Laws of streamed text, against the same question put to the whole text at once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plait.server.prompt.detokenizer import Detokenizer
from plait.server.prompt.stop import StopScanner, StopStrings
from plait.server.prompt.stream import TextStream

# Bytes that begin, continue and break UTF-8 sequences are drawn often.
TRICKY = st.sampled_from(
    [b"\xf0\x9f", b"\xa6\x8a", b"\xe2", b"\x82", b"\xac", b"\xed\xa0", b"\xc0"]
)
TOKEN = st.one_of(st.binary(max_size=5), TRICKY, st.text(max_size=3).map(str.encode))
LETTERS = st.text(alphabet="ab", max_size=40)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4)


def first_complete(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return the text before the stop string that is complete first, and that string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def longest_beginning(text: str, stops: list[str]) -> int:
    """Return the length of the longest suffix that some stop string goes on from."""
    return max(
        length
        for length in range(len(text) + 1)
        if not length or any(stop.startswith(text[-length:]) for stop in stops)
    )


@given(tokens=st.lists(TOKEN, max_size=30))
def test_pieces_join_to_the_decoded_whole(tokens: list[bytes]) -> None:
    detokenizer = Detokenizer(tokens)
    pieces = [detokenizer.push(i) for i in range(len(tokens))]
    have = "".join(pieces) + detokenizer.finish()
    assert have == b"".join(tokens).decode("utf-8", errors="replace")


@given(tokens=st.lists(TOKEN, max_size=30))
def test_only_bytes_that_may_become_a_character_are_held(tokens: list[bytes]) -> None:
    detokenizer = Detokenizer(tokens)
    have, data = "", b""
    for i, token in enumerate(tokens):
        have += detokenizer.push(i)
        data += token
        want = data.decode("utf-8", errors="replace")
        assert want.startswith(have)
        assert len(want) - len(have) in ((1, 2) if detokenizer.has_partial_character else (0,))


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_stop_strings_end_the_text_as_in_the_whole(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    scanner = StopScanner(StopStrings(stops))
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    have = "".join(scanner.push(text[a:b]) for a, b in pairwise(edges))
    assert (have + scanner.finish(), scanner.matched) == first_complete(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    scanner = StopScanner(StopStrings(stops))
    have = ""
    for end, char in enumerate(text, start=1):
        have += scanner.push(char)
        if scanner.matched is not None:
            return
        assert have == text[: end - longest_beginning(text[:end], stops)]


@given(
    tokens=st.lists(TOKEN, max_size=20),
    stops=st.lists(st.text(alphabet="\u20ac\ufffd\U0001f98aa", min_size=1, max_size=3), max_size=3),
    batches=st.lists(st.integers(1, 5), min_size=20, max_size=20),
)
def test_streams_do_not_depend_on_batches(
    tokens: list[bytes], stops: list[str], batches: list[int]
) -> None:
    want, stop = first_complete(b"".join(tokens).decode("utf-8", errors="replace"), stops)
    stream = TextStream(tokens, StopStrings(stops))
    have, start = "", 0
    for size in batches:
        have += stream.push(range(len(tokens))[start : start + size]).text
        start += size
    assert (have + stream.finish().text, stream.stop) == (want, stop)
    assert stream.num_chars == len(want)
