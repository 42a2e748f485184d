"""Logprobs in OpenAI's two shapes, and the tokens that go with each piece of a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.logprobs import chat_logprobs, completion_logprobs, text_offsets
from plait.server.prompt.stop import StopStrings
from plait.server.prompt.stream import TextDelta, TextStream
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from tests.fixtures.vocabularies import (
    byte_level,
    gguf_keys,
    sentencepiece,
    sentencepiece_keys,
    write_gguf,
)

END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("logprobs") / "m.gguf"
    return load_tokenizer(write_gguf(path, gguf_keys(byte_level(special=(END,)), "gpt-2", [END])))


def logprobs_of(ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(token_id, -float(i)) for i, token_id in enumerate(ids)]


def test_chat_shape(tokenizer: Tokenizer) -> None:
    a, half = tokenizer.encode("a")[0], tokenizer.encode("\u00bd")[0]
    entries = [
        TokenLogprobs(a, -0.5, ((a, -0.5), (0, -1.5))),
        TokenLogprobs(half, float("-inf")),
    ]
    have = chat_logprobs(tokenizer, entries)
    name = list(END.encode())
    assert have == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": END, "logprob": -1.5, "bytes": name},
                ],
            },
            {"token": "\\xc2", "logprob": -9999.0, "bytes": [0xC2], "top_logprobs": []},
        ],
        "refusal": None,
    }
    json.dumps(have, allow_nan=False)


def test_completions_shape(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    half = tokenizer.encode("\u00bd")[0]
    entries = [None, TokenLogprobs(half, -2.0, ((a, -1.0), (b, -1.5)))]
    assert completion_logprobs(tokenizer, [a, half], entries, [0, 1]) == {
        "tokens": ["a", "bytes:\\xc2"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"a": -1.0, "b": -1.5, "bytes:\\xc2": -2.0}],
        "text_offset": [0, 1],
    }


def test_text_offsets_count_characters(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a\u00bdb"), 0, *tokenizer.encode("c")]
    assert [tokenizer.token_name(i) for i in ids[:4]] == [b"a", b"\xc2", b"\xbd", b"b"]
    written = len(tokenizer.token_name(0))  # echo writes special tokens out
    assert text_offsets(tokenizer, ids) == [0, 1, 1, 2, 3, 3 + written]
    assert tokenizer.decode(ids, special=True)[3 + written :] == "c"


def test_text_offsets_skip_the_space_that_decoding_drops(tmp_path: Path) -> None:
    spm = load_tokenizer(write_gguf(tmp_path / "m.gguf", sentencepiece_keys(sentencepiece())))
    ids = spm.encode("fox fox", prefix=False)
    offsets = text_offsets(spm, ids)
    text = spm.decode(ids)
    for offset, token_id in zip(offsets, ids, strict=True):
        assert text[offset:].startswith(
            spm.token_bytes[token_id].decode().lstrip(" " * (not offset))
        )


def stream(
    tokenizer: Tokenizer, text: str, stops: list[str], *, include: bool = False
) -> list[TextDelta]:
    """Push a text's tokens one by one, until a stop string ends it."""
    run = TextStream(tokenizer.token_bytes, StopStrings(stops), include_stop=include)
    ids = tokenizer.encode(text)
    pieces = []
    for token_id, logprob in zip(ids, logprobs_of(ids), strict=True):
        pieces.append(run.push([token_id], [logprob]))
        if run.stop is not None:
            return pieces
    return [*pieces, run.finish()]


@pytest.mark.parametrize("text", ["abc", "a\u00bdb", "the fox \U0001f98a!", ""])
def test_every_token_goes_with_its_text(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, text, ["ZZ"])
    ids = tokenizer.encode(text)
    assert "".join(piece.text for piece in pieces) == text
    assert [entry.token_id for piece in pieces for entry in piece.logprobs] == ids
    assert [offset for piece in pieces for offset in piece.offsets] == text_offsets(tokenizer, ids)


def test_a_character_is_released_with_its_last_token(tokenizer: Tokenizer) -> None:
    pieces = stream(tokenizer, "\u00bd", ["ZZ"])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [
        ("", 0),
        ("\u00bd", 2),
        ("", 0),
    ]


def test_held_text_holds_its_tokens(tokenizer: Tokenizer) -> None:
    pieces = stream(tokenizer, "xYz", ["YY"])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [
        ("x", 1),
        ("", 0),
        ("Yz", 2),
        ("", 0),
    ]


def test_tokens_of_the_stop_string_are_not_shown(tokenizer: Tokenizer) -> None:
    pieces = stream(tokenizer, "xYYz", ["YY"])
    assert "".join(piece.text for piece in pieces) == "x"
    assert sum(len(piece.logprobs) for piece in pieces) == 1
    shown = stream(tokenizer, "xYYz", ["YY"], include=True)
    assert "".join(piece.text for piece in shown) == "xYY"
    assert sum(len(piece.logprobs) for piece in shown) == 3


def test_half_characters_within_a_stop_string_are_not_shown(tokenizer: Tokenizer) -> None:
    pieces = stream(tokenizer, "x\u00bd", ["\u00bd"])
    assert "".join(piece.text for piece in pieces) == "x"
    assert sum(len(piece.logprobs) for piece in pieces) == 1


def test_tokens_behind_a_stop_string_are_not_counted(tokenizer: Tokenizer) -> None:
    run = TextStream(tokenizer.token_bytes, StopStrings(["Y"]))
    ids = tokenizer.encode("xYzzz")
    piece = run.push(ids)
    assert (piece.text, run.stop, run.num_tokens, run.num_chars) == ("x", "Y", 2, 1)
    assert run.push(ids).text == run.finish().text == ""


def test_an_unfinished_character_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    run = TextStream(tokenizer.token_bytes)
    assert run.push(tokenizer.encode("\u00bd")[:1]).text == ""
    assert run.finish().text == "\ufffd"
