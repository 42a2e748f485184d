"""Read a tokenizer from a Hugging Face folder: tokenizer.json and the config files beside it.

Only the fast format is supported. No code of the folder runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from plait.server.models.catalog import MALFORMED, BadModel, ModelFiles, naming
from plait.server.models.hf.generation import SamplingDefaults, sampling_from_config
from plait.server.models.hf.json_files import read_json
from plait.server.models.spec import MAX_SIZE
from plait.server.prompt.tokenizer_data import (
    SPACE,
    TokenizerData,
    byte_fallback_bytes,
    byte_level_bytes,
)

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def read_hf_tokenizer(files: ModelFiles, *, sampling: bool = False) -> TokenizerData:
    """Return the tokenizer of a Hugging Face folder; `sampling`: also its sampling defaults.

    Raises:
        BadModel: a file is missing or damaged, or the vocabulary is of an unknown kind.
    """
    folder = files.path
    backend = _backend(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json")
    config = read_json(folder / "config.json")
    with naming(folder / "config.json"):
        size = max(backend.get_vocab_size(), _rows(config))
    with naming(folder / "tokenizer_config.json"):
        named = {name: _token_text(settings[name]) for name in NAMED_TOKENS if settings.get(name)}
        bos = _token_id(backend, named.get("bos_token"))
    with naming(folder / "tokenizer.json"):
        prefix = _prefix(backend)
        spelled, strips = _spell(backend, size)
        for token_id, token in backend.get_added_tokens_decoder().items():
            spelled[token_id] = b"" if token.special else token.content.encode()
    return TokenizerData(
        backend=backend,
        size=size,
        token_bytes=spelled,
        prefix=prefix,
        bos_token_id=bos,
        eos_token_ids=_end_tokens(folder, config, _token_id(backend, named.get("eos_token"))),
        chat_template=_chat_template(folder, settings),
        named_tokens=named,
        strips_space=strips,
        sampling=_sampling(folder) if sampling else SamplingDefaults(),
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise BadModel(f"{path} is missing; slow tokenizers are not read, save the fast one")
    try:
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except (*MALFORMED, OSError) as error:  # from_file raises a bare Exception for these faults
        raise BadModel(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()  # both may be set from training
    backend.no_padding()
    return backend


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _rows(config: dict[str, Any]) -> int:
    rows = _text_config(config).get("vocab_size") or 0
    if not isinstance(rows, int) or rows > MAX_SIZE:
        raise BadModel(f"vocab_size {rows!r} is no size of a vocabulary")
    return rows


def _token_text(token: str | dict[str, Any]) -> str:
    text = token if isinstance(token, str) else token["content"]
    if not isinstance(text, str):
        raise BadModel(f"a token's text is {text!r}")
    return text


def _token_id(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def _prefix(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the token ids that the post-processor adds in front; those behind end the text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return tuple(full[:i])
    return ()


def _spell(backend: tokenizers.Tokenizer, size: int) -> tuple[list[bytes], bool]:
    """Return every token's bytes, and whether decoding removes a space at the start.

    The decoder is tested, not its description, which has several forms for each kind.
    """
    tokens = [backend.id_to_token(i) or "" for i in range(size)]
    if backend.decoder is None:
        raise BadModel("tokenizer.json has no decoder")
    if backend.decoder.decode(["a", "\u0120a"]) == "a a":
        return byte_level_bytes(tokens), False
    if backend.decoder.decode(["a", f"{SPACE}a"]) == "a a":
        return byte_fallback_bytes(tokens), backend.decoder.decode([f"{SPACE}a"]) == "a"
    raise BadModel("tokenizer.json is neither byte-level nor SentencePiece with byte fallback")


def _end_tokens(folder: Path, config: dict[str, Any], eos: int | None) -> frozenset[int]:
    """Return the ids of all end tokens; generation_config.json takes precedence."""
    generation = read_json(folder / "generation_config.json").get("eos_token_id")
    declared = generation if generation is not None else _text_config(config).get("eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    if odd := [i for i in ids if i is not None and not isinstance(i, int)]:
        raise BadModel(f"{folder}: eos_token_id {odd[0]!r} is no token id")
    return frozenset(i for i in (*ids, eos) if i is not None)


def _sampling(folder: Path) -> SamplingDefaults:
    path = folder / "generation_config.json"
    with naming(path):
        return sampling_from_config(read_json(path))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadModel(f"{path} can't be read as UTF-8 text: {error}") from error
    with naming(folder / "tokenizer_config.json"):
        template = settings.get("chat_template")
        if isinstance(template, list):  # several by name; the others are for tools and retrieval
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        if template is not None and not isinstance(template, str):
            raise BadModel(f"chat_template is {str(template)[:40]!r}, not a text")
        return template
