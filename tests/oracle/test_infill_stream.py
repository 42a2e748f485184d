"""A filled template against its definition: each hole decoded by itself, the text in between."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.infill import InfillStream, InfillTemplate
from plait.server.prompt.stream import TextDelta
from tests.fixtures.byte_tokenizer import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()
# Bytes of two and three to a character, whole and broken, and an end token.
TOKENS = st.sampled_from([*b"ab ", *"ü狐".encode(), 0xFF, EOS])
HOLES = st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=4)


@st.composite
def templates(draw: st.DrawFn) -> tuple[list[str], list[list[int]], list[int]]:
    """Texts, the tokens of the holes between them, and the sizes of what is pushed at once."""
    holes = draw(HOLES)
    texts = draw(
        st.lists(st.text("xy狐", max_size=3), min_size=len(holes) + 1, max_size=len(holes) + 1)
    )
    return texts, holes, draw(st.lists(st.integers(1, 4), min_size=20, max_size=20))


def run(texts: list[str], holes: list[list[int]], sizes: list[int]) -> list[TextDelta]:
    """Push the holes' tokens in groups of these sizes, then finish."""
    stream = InfillStream(
        TOKENIZER.token_bytes, InfillTemplate(tuple(texts), tuple(len(hole) for hole in holes))
    )
    tokens = [token for hole in holes for token in hole]
    borders = [b for b in accumulate(sizes, initial=0) if b < len(tokens)] + [len(tokens)]
    pieces = []
    for start, stop in pairwise(borders):
        group = tokens[start:stop]
        pieces.append(stream.push(group, [TokenLogprobs(token, -1.0) for token in group]))
    assert stream.num_tokens == len(tokens)
    return [*pieces, stream.finish()]


def filled(texts: list[str], holes: list[list[int]]) -> str:
    """The definition."""
    between = "".join(
        TOKENIZER.decode(hole) + text for hole, text in zip(holes, texts[1:], strict=True)
    )
    return texts[0] + between


@given(templates())
def test_the_pieces_are_the_filled_template(
    case: tuple[list[str], list[list[int]], list[int]],
) -> None:
    texts, holes, sizes = case
    pieces = run(texts, holes, sizes)
    assert "".join(piece.text for piece in pieces) == filled(texts, holes)
    assert pieces[-1] == TextDelta("", [], [])


@given(templates())
def test_logprobs_stand_where_their_tokens_do(
    case: tuple[list[str], list[list[int]], list[int]],
) -> None:
    texts, holes, sizes = case
    pieces = run(texts, holes, sizes)
    entries = [entry.token_id for piece in pieces for entry in piece.logprobs]
    assert entries == [token for hole in holes for token in hole]
    offsets = [offset for piece in pieces for offset in piece.offsets]
    want = []
    for k, hole in enumerate(holes):
        start = len(filled(texts[: k + 1], holes[:k]))
        want += [start] * len(hole)
        stop = start + len(TOKENIZER.decode(hole))
        mine = offsets[len(want) - len(hole) : len(want)]
        assert mine[0] == start
        assert all(start <= offset <= stop for offset in mine)
    assert offsets == sorted(offsets)


def test_an_answer_that_ends_early_still_has_all_of_the_text() -> None:
    stream = InfillStream(TOKENIZER.token_bytes, InfillTemplate(("a", "b", "c"), (2, 2)))
    text = stream.push([*b"x"]).text + stream.finish().text
    assert text == "axbc"
    assert (
        InfillStream(TOKENIZER.token_bytes, InfillTemplate(("a", "b"), (1,))).finish().text == "ab"
    )
