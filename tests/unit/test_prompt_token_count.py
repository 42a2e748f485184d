"""How few tokens a text can have: a bound that no tokenizer undercuts, or none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal, cast

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from plait.server.api.requests.prompts import check_length
from plait.server.errors import ContextTooLong
from plait.server.prompt.token_count import SHRINKS, token_count_bound
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.prompt.tokenizer_data import TokenizerData, byte_level_alphabet, byte_level_bytes

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
LONG = "-" * 32  # the longest token


def byte_level(
    normalizer: normalizers.Normalizer | None = None, *, rstrip: bool = False, lacks: str = ""
) -> Tokenizer:
    letters = [letter for letter in byte_level_alphabet() if letter not in lacks]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = []
    for i in (1, 2, 4, 8, 16):
        vocabulary["-" * 2 * i] = len(vocabulary)
        merges.append(("-" * i, "-" * i))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=rstrip)])
    spelled = [*byte_level_bytes(list(vocabulary)), b""]
    size = len(spelled)
    return Tokenizer(TokenizerData(backend, size, spelled, (), None, frozenset({size - 1}), None))


PLAIN = byte_level()
COMPOSING = byte_level(normalizers.NFC())
STRIPPING = byte_level(rstrip=True)
LACKING = byte_level(lacks="aÃ")  # the letter, and the first byte of é
PIECES = st.lists(
    st.sampled_from([LONG, LONG * 3, "a", "é", "e\u0301", "\u1100\u1161\u11a8", " " * 40, "\n"])
    | st.sampled_from(["<|end|>", "<|end|>" + " " * 99, "\u212b", "\U0002f800"])
    | st.text(max_size=5),
    max_size=12,
).map("".join)


@given(PIECES, st.sampled_from([PLAIN, COMPOSING, STRIPPING, LACKING]), st.booleans())
def test_no_text_has_fewer_tokens(text: str, tokenizer: Tokenizer, special: bool) -> None:
    assert tokenizer.min_token_count(text) <= len(tokenizer.encode(text, special=special))


def test_bytes_that_no_token_spells_do_not_count() -> None:
    assert LACKING.encode("a" * 5000) == [] and LACKING.min_token_count("a" * 5000) == 0
    assert LACKING.min_token_count("b" * 5000) > 100


def test_the_bound_is_met() -> None:
    text = LONG * 10
    assert PLAIN.min_token_count(text) == len(PLAIN.encode(text)) == 10


def _characters() -> Iterator[str]:
    ranges = (
        range(0xD800),
        range(0xE000, 0x10000),
        range(0x1D400, 0x1D800),
        range(0x2F800, 0x2FA20),
    )
    return (chr(code) for each in ranges for code in each)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms_shrink_no_more_than_is_said(form: str) -> None:
    for char in _characters():
        for text in (char, unicodedata.normalize("NFKD" if "K" in form else "NFD", char)):
            after = unicodedata.normalize(cast(Form, form), text)
            assert len(text.encode()) <= SHRINKS[form] * len(after.encode())


def _bound(backend: tokenizers.Tokenizer) -> int | None:
    return token_count_bound(backend, [b"x"]).bytes_per_token


@pytest.mark.parametrize("what", ["unknown", "removed", "stripped", "words", "deleted"])
def test_nothing_is_promised_where_text_can_vanish(what: str) -> None:
    vocabulary = dict(byte_level_alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if what == "removed":
        split = pre_tokenizers.Split(Regex("x+"), "removed")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    if what == "stripped":
        backend.normalizer = normalizers.Strip()
    if what == "unknown":
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    if what == "words":
        backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    if what == "deleted":
        backend.normalizer = normalizers.Replace("x", "")
    assert _bound(backend) is None


def test_a_long_text_is_refused_untokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLAIN, "encode", None)
    with pytest.raises(ContextTooLong, match="at least 100001"):
        check_length(LONG * 100_000 + "a", PLAIN, 100_000, param="prompt")
    check_length(LONG * 100_000, PLAIN, 100_000, param="prompt")
