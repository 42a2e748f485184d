"""Build a tokenizer from a GGUF file's metadata, without the original tokenizer files.

GGUF has tokens, token types, merges or scores, and only the name of the pre-tokenizer, not its
regular expression. The names below are those of the supported model families. Any other name is
refused, because wrong pre-tokenization silently degrades every output.
Sources: the GGUF specification; each family's own tokenizer.json; Sennrich et al. 2016 (BPE);
Kudo and Richardson 2018 (SentencePiece). tests/parity checks against transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from plait.server.models.catalog import OTHERS, BadModel, ModelFiles, naming
from plait.server.models.gguf_header import read_gguf
from plait.server.models.hf.generation import SamplingDefaults, sampling_from_metadata
from plait.server.prompt.tokenizer_data import (
    SPACE,
    TokenizerData,
    byte_fallback_bytes,
    byte_level_bytes,
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

LLAMA_3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_TAIL}"
QWEN_2 = rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_TAIL}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
GPT_2 = "gpt-2"  # the expression that ByteLevel itself carries
GPT_2_DIGITS = "gpt-2, one digit at a time"

# tokenizer.ggml.pre -> how text is split before merging
PRE_TOKENIZERS = {
    "gpt-2": GPT_2,
    "smollm": GPT_2_DIGITS,
    "llama-bpe": LLAMA_3,
    "llama3": LLAMA_3,
    "llama-v3": LLAMA_3,
    "falcon3": LLAMA_3,
    "qwen2": QWEN_2,
    "deepseek-r1-qwen": QWEN_2,
    "tekken": TEKKEN,
}
IGNORE_MERGES = frozenset({LLAMA_3, TEKKEN})  # a word that is a token is not built by merges
NFC = frozenset({QWEN_2})
ADDS_BOS = frozenset({LLAMA_3, TEKKEN})  # where add_bos_token is absent, as in llama.cpp

# End tokens that converters do not always declare; llama.cpp has the same list.
END_NAMES = """
    <|im_end|> <|eot_id|> <|eom_id|> <end_of_turn> <|end|> <|endoftext|> <|end_of_text|>
    <EOT> _<EOT> [EOT] [EOS] </s> <eos> <end_of_utterance> <turn|>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD>
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
ENDS = frozenset(END_NAMES.split())
# llama.cpp's ids for a SentencePiece vocabulary that does not declare them.
SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL = frozenset({TokenType.UNKNOWN, TokenType.CONTROL})
ADDED = SPECIAL | {TokenType.USER_DEFINED}


def read_gguf_tokenizer(files: ModelFiles, *, sampling: bool = False) -> TokenizerData:
    """Return the tokenizer of a GGUF file; `sampling`: also its sampling defaults.

    Raises:
        BadModel: the file is damaged, or its vocabulary's kind or pre-tokenizer is not known.
    Cost: 0.3 s for a vocabulary of 49,152 tokens, two thirds of it reading the file.
    """
    metadata = read_gguf(files.path).metadata
    with naming(files.path):
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise BadModel("tokenizer.chat_template is not a text")
        vocabulary = _tokenizer_data(_TokenizerMetadata(metadata), template)
        defaults = sampling_from_metadata(metadata) if sampling else SamplingDefaults()
        return replace(vocabulary, sampling=defaults)


class _TokenizerMetadata:
    """The `tokenizer.ggml.` keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.texts("tokens")
        types = self.get("token_type", [TokenType.NORMAL] * len(self.tokens))
        if len(types) != len(self.tokens):
            raise BadModel("tokenizer.ggml.token_type and .tokens differ in length")
        self.types: list[int] = types

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise BadModel(f"the metadata lacks tokenizer.ggml.{key}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.need(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise BadModel(f"tokenizer.ggml.{key} is no list of texts")
        return value

    def token_id(self, name: str) -> int | None:
        token_id = self.get(f"{name}_token_id")
        if token_id is None:
            return self._usual_id(name)
        if not 0 <= token_id < len(self.tokens):
            raise BadModel(f"tokenizer.ggml.{name}_token_id is {token_id}, out of the vocabulary")
        return int(token_id)

    def _usual_id(self, name: str) -> int | None:
        usual = SENTENCEPIECE_IDS.get(name) if self.get("model") == "llama" else None
        is_there = usual is not None and usual < len(self.tokens) and self.types[usual] in SPECIAL
        return usual if is_there else None


def _tokenizer_data(section: _TokenizerMetadata, chat_template: str | None) -> TokenizerData:
    kind = section.need("model")
    if kind == "gpt2":
        backend, spelled, strips = _byte_level(section), byte_level_bytes(section.tokens), False
        adds_bos = section.get("add_bos_token", PRE_TOKENIZERS[section.get("pre")] in ADDS_BOS)
    elif kind == "llama":
        backend, spelled = _sentencepiece(section), byte_fallback_bytes(section.tokens)
        strips = section.get("add_space_prefix", True)
        adds_bos = section.get("add_bos_token", True)
    else:
        raise BadModel(
            f"tokenizer.ggml.model is {kind!r}; known are 'gpt2' and 'llama'. {OTHERS['gguf']}"
        )
    _add_tokens(backend, section)
    bos = section.token_id("bos")
    return TokenizerData(
        backend=backend,
        size=len(section.tokens),
        token_bytes=_token_bytes(section, spelled),
        prefix=(bos,) if adds_bos and bos is not None else (),
        bos_token_id=bos,
        eos_token_ids=_end_tokens(section),
        chat_template=chat_template,
        named_tokens=_named_tokens(section),
        strips_space=strips,
    )


def _token_bytes(section: _TokenizerMetadata, spelled: list[bytes]) -> list[bytes]:
    """Return each token's bytes in a text: none if special, its text if added, or `spelled`."""
    own = {TokenType.USER_DEFINED: str.encode, **dict.fromkeys(SPECIAL, lambda text: b"")}
    return [
        own[TokenType(kind)](token) if kind in ADDED else text
        for token, kind, text in zip(section.tokens, section.types, spelled, strict=True)
    ]


def _byte_level(section: _TokenizerMetadata) -> tokenizers.Tokenizer:
    name = section.get("pre", "")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise BadModel(f"tokenizer.ggml.pre is {name!r}; known are {known}. {OTHERS['gguf']}")
    pattern = PRE_TOKENIZERS[name]
    vocab = {token: i for i, token in enumerate(section.tokens)}
    merges = [_merge(merge, vocab) for merge in section.texts("merges")]
    model = models.BPE(vocab, merges, ignore_merges=pattern in IGNORE_MERGES)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    if pattern in NFC:
        backend.normalizer = normalizers.NFC()
    return backend


def _merge(line: str, vocab: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if left not in vocab or right not in vocab or left + right not in vocab:
        raise BadModel(f"the merge {line!r} is not of this vocabulary")
    return left, right


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    if pattern == GPT_2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern == GPT_2_DIGITS:
        first = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


def _sentencepiece(section: _TokenizerMetadata) -> tokenizers.Tokenizer:
    scores = section.need("scores")
    if len(scores) != len(section.tokens):
        raise BadModel("tokenizer.ggml.scores and .tokens differ in length")
    mergeable = {
        token: score
        for token, score, kind in zip(section.tokens, scores, section.types, strict=True)
        if kind == TokenType.NORMAL
    }
    vocab = {token: i for i, token in enumerate(section.tokens)}
    unknown = section.token_id("unknown")
    model = models.BPE(
        vocab,
        merges_by_score(mergeable),
        unk_token=None if unknown is None else section.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    prefix = [normalizers.Prepend(SPACE)] if section.get("add_space_prefix", True) else []
    backend.normalizer = normalizers.Sequence([*prefix, spaces])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece merges the adjacent tokens whose union scores highest, so every split of a token
    into two tokens is a merge with the rank of the token.
    """

    def cuts(token: str) -> Iterator[tuple[str, str]]:
        for i in range(1, len(token)):
            if token[:i] in scores and token[i:] in scores:
                yield token[:i], token[i:]

    best_first = sorted(scores, key=lambda token: -scores[token])
    return [cut for token in best_first for cut in cuts(token)]


def _add_tokens(backend: tokenizers.Tokenizer, section: _TokenizerMetadata) -> None:
    def added(kinds: Sequence[int], *, special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, normalized=False, special=special)
            for token, kind in zip(section.tokens, section.types, strict=True)
            if kind in kinds
        ]

    backend.add_special_tokens(added(tuple(SPECIAL), special=True))
    backend.add_tokens(added((TokenType.USER_DEFINED,), special=False))


def _end_tokens(section: _TokenizerMetadata) -> frozenset[int]:
    named = {section.token_id(name) for name in ("eos", "eot", "eom")} - {None}
    usual = {
        i
        for i, (token, kind) in enumerate(zip(section.tokens, section.types, strict=True))
        if kind in ADDED and token in ENDS
    }
    return frozenset(i for i in named | usual if i is not None)


def _named_tokens(section: _TokenizerMetadata) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {public: section.token_id(name) for name, public in names.items()}
    return {public: section.tokens[i] for public, i in ids.items() if i is not None}
