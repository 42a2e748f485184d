"""Token ids and texts equal those of transformers' tokenizers over the same vocabulary.

transformers has a class for Qwen, Llama and GPT-2. SmolLM's and Llama 3's split live only in their
own tokenizer.json, so these are checked against byte pair encoding written out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers

from plait.server.models.catalog import ModelFiles
from plait.server.models.gguf_header import read_gguf
from plait.server.prompt.chat_prompt import render_chat
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.prompt.tokenizer_data import byte_level_alphabet
from tests.fixtures.vocabularies import (
    TEXTS,
    Trained,
    byte_level,
    gguf_keys,
    sentencepiece,
    sentencepiece_keys,
    write_gguf,
)

pytestmark = pytest.mark.parity

regex = pytest.importorskip("regex")  # with \p{..}; transformers brings it

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def merge(word: bytes, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the best pair of neighbours, leftmost first, until none is left to merge."""
    letters = {byte: letter for letter, byte in byte_level_alphabet().items()}
    parts = [letters[byte] for byte in word]
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def naive_encode(text: str, trained: Trained, patterns: Sequence[str]) -> list[int]:
    """Cut a text by each pattern in turn, keeping what lies between, and merge each word."""
    words = [text]
    for pattern in patterns:
        words = [part for word in words for part in cut(word, pattern)]
    ids = {token: i for i, token in enumerate(trained.tokens)}
    ranks = {pair: i for i, pair in enumerate(trained.merges)}
    return [ids[part] for word in words for part in merge(word.encode(), ranks)]


def cut(word: str, pattern: str) -> list[str]:
    return [part for part in regex.split(f"({pattern})", word) if part]


def load(folder: Path, pre: str) -> Tokenizer:
    trained = byte_level(special=SPECIAL)
    return load_tokenizer(write_gguf(folder / "m.gguf", gguf_keys(trained, pre, SPECIAL)))


def peer_of(kind: type[Any], trained: Trained, **options: Any) -> Any:
    vocab = {token: i for i, token in enumerate(trained.tokens)}
    return kind(vocab=vocab, merges=list(trained.merges), **options)


def peer_encode(peer: Any, text: str) -> list[int]:
    ids: list[int] = peer.encode(text, add_special_tokens=False)
    return ids


@pytest.mark.parametrize(
    ("pre", "kind"),
    [("gpt-2", transformers.GPT2Tokenizer), ("qwen2", transformers.Qwen2Tokenizer)],
)
def test_byte_level_families(pre: str, kind: type[Any], tmp_path: Path) -> None:
    tokenizer = load(tmp_path, pre)
    peer = peer_of(kind, byte_level(special=SPECIAL))
    peer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == peer_encode(peer, text)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("pre", "patterns"), [("smollm", [r"\p{N}", GPT_2]), ("llama-bpe", [LLAMA_3])]
)
def test_byte_level_against_the_definition(pre: str, patterns: list[str], tmp_path: Path) -> None:
    tokenizer = load(tmp_path, pre)
    for text in TEXTS:
        assert tokenizer.encode(text) == naive_encode(text, byte_level(special=SPECIAL), patterns)


def test_smollm2_against_the_definition(smollm2_files: ModelFiles) -> None:
    metadata = read_gguf(smollm2_files.path).metadata
    trained = Trained(
        metadata["tokenizer.ggml.tokens"],
        [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
    )
    tokenizer = load_tokenizer(smollm2_files)
    for text in TEXTS:
        assert tokenizer.encode(text) == naive_encode(text, trained, [r"\p{N}", GPT_2])


def test_sentencepiece(tmp_path: Path) -> None:
    trained = sentencepiece()
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", sentencepiece_keys(trained)))
    peer = peer_of(transformers.LlamaTokenizer, trained)
    for text in TEXTS:
        if "</s>" in text:  # transformers reads special tokens out of any text
            continue
        if text.startswith(" "):  # and adds no space to a space, as SentencePiece itself does
            continue
        ids = tokenizer.encode(text, prefix=False)
        assert ids == peer_encode(peer, text)
        assert tokenizer.decode(ids) == peer.decode(ids)


def test_hugging_face_folders(tmp_path: Path) -> None:
    peer = peer_of(transformers.Qwen2Tokenizer, byte_level(special=SPECIAL))
    peer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    peer.chat_template = "{{ messages[0].content }}"
    peer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelFiles("hf", tmp_path, "m"))
    assert tokenizer.chat_template == peer.chat_template
    assert tokenizer.special_token_ids == set(peer.all_special_ids)
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == peer_encode(peer, text)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == peer.decode(ids)


def test_chats_are_rendered_as_transformers_does(smollm2_files: ModelFiles) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    peer = peer_of(transformers.GPT2Tokenizer, byte_level(special=SPECIAL))
    chat = [
        {"role": "user", "content": "Hi  there"},
        {"role": "assistant", "content": "é\n"},
        {"role": "user", "content": " {{ 1 }} <|im_end|>"},
    ]
    for prompted in (True, False):
        have = render_chat(tokenizer, chat, add_generation_prompt=prompted)
        want = peer.apply_chat_template(
            chat,
            chat_template=tokenizer.chat_template,
            add_generation_prompt=prompted,
            tokenize=False,
        )
        assert have == want
