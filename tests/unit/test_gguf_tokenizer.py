"""What a GGUF file's vocabulary leaves unsaid: as llama.cpp takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from tests.fixtures.vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    byte_level,
    gguf_keys,
    sentencepiece,
    sentencepiece_keys,
    write_gguf,
)

BOS, END = "<|begin_of_text|>", "<|eot_id|>"


def byte_tokenizer(path: Path, pre: str, control: tuple[str, ...], **keys: Any) -> Tokenizer:
    trained = byte_level(special=control)
    added = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return load_tokenizer(write_gguf(path / "m.gguf", gguf_keys(trained, pre, control) | added))


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"])
def test_families_that_begin_with_bos_do_so_when_the_file_is_silent(
    tmp_path: Path, pre: str
) -> None:
    silent = byte_tokenizer(tmp_path, pre, (BOS, END), bos_token_id=0)
    assert silent.encode("fox")[0] == 0
    assert silent.encode("fox", special=True)[0] != 0  # a chat template writes it itself
    told = byte_tokenizer(tmp_path, pre, (BOS, END), bos_token_id=0, add_bos_token=False)
    assert told.encode("fox") == silent.encode("fox")[1:]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "deepseek-r1-qwen"])
def test_other_families_begin_with_bos_only_when_told(tmp_path: Path, pre: str) -> None:
    assert byte_tokenizer(tmp_path, pre, (BOS, END), bos_token_id=0).encode("fox")[0] != 0
    told = byte_tokenizer(tmp_path, pre, (BOS, END), bos_token_id=0, add_bos_token=True)
    assert told.encode("fox")[0] == 0


def test_no_bos_is_added_where_none_is_named(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, "llama-bpe", (BOS, END))
    assert tokenizer.bos_token_id is None
    assert tokenizer.decode(tokenizer.encode("fox"), special=True) == "fox"


def test_sentencepiece_ids_have_usual_places(tmp_path: Path) -> None:
    keys = sentencepiece_keys(sentencepiece())
    for name in ("unknown", "bos", "eos"):
        del keys[f"tokenizer.ggml.{name}_token_id"]
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.encode("fox")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {2}
    keys["tokenizer.ggml.token_type"][1] = NORMAL  # no mark of a beginning, then
    assert load_tokenizer(write_gguf(tmp_path / "n.gguf", keys)).bos_token_id is None


ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "</s>", "[EOS]", "<|fim_pad|>")


@pytest.mark.parametrize("end", ENDS)
def test_usual_ends_end_a_text_beside_the_named_one(tmp_path: Path, end: str) -> None:
    tokenizer = byte_tokenizer(tmp_path, "qwen2", (BOS, END, end), eos_token_id=1)
    assert tokenizer.eos_token_ids == {1, 2}


def test_only_added_tokens_are_ends(tmp_path: Path) -> None:
    trained = byte_level(special=("</s>", "<|end|>", "<tool>"))
    keys = gguf_keys(trained, "gpt-2", ("<tool>",))
    keys["tokenizer.ggml.token_type"][1] = USER_DEFINED
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys))
    # 0 is a piece of HTML like any other, and 2 is a control token that ends nothing.
    assert tokenizer.eos_token_ids == {1}


@pytest.mark.parametrize(
    "text", ["é", "<naïve>", "Über", "ÿ", "\u0120", "a\u010ab", "£5", "<plain>"]
)
def test_user_defined_tokens_stand_for_their_own_text(tmp_path: Path, text: str) -> None:
    trained = byte_level(special=("<|added|>",))
    keys = gguf_keys(trained, "gpt-2")
    keys["tokenizer.ggml.tokens"][0] = text
    keys["tokenizer.ggml.token_type"][0] = USER_DEFINED
    if text in trained.tokens:  # the alphabet's own stand-in moves out of the way
        keys["tokenizer.ggml.tokens"][trained.tokens.index(text)] = "<|moved|>"
        kept = [m for m in keys["tokenizer.ggml.merges"] if text not in m]
        keys["tokenizer.ggml.merges"] = kept
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.token_bytes[0] == text.encode()
    assert tokenizer.decode([0]) == text
    assert 0 in tokenizer.encode(f"x{text}y")
    assert tokenizer.decode(tokenizer.encode(f"x{text}y")) == f"x{text}y"


def test_normal_tokens_are_still_spelled_in_bytes(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, "gpt-2", ())
    assert tokenizer.decode(tokenizer.encode("über £5")) == "über £5"
    assert CONTROL not in tokenizer.eos_token_ids
