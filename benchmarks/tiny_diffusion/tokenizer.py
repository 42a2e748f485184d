"""The tiny model's tokenizer and chat template: whole words for the tasks, bytes for the rest.

python -m benchmarks.tiny_diffusion.tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks.tasks import extraction
from benchmarks.tasks import words as w

SPECIAL = ("<|end|>", "<|mask|>", "<|user|>", "<|assistant|>", "<|system|>")  # ids 0 to 4
END, MASK, USER, ASSISTANT, SYSTEM = range(5)

# Marks and turns of phrase that are one token each. The longest that fits is taken.
GLUE = (
    '", "', '["', '"]', '": "', '": ', ', "', '{"', '"}', '}', '[]', '"', ' "', '[', ']', '{', ':',
    ' is ', ', ', ' -> ', ': ', ', given ', ', please', 'Now ', ' item ', ' any item', ' by "',
    '" at ', '" anywhere', 'json ', 'latin square', '\n', ',', '+', '-', '=', ';', '.', ' ', '?',
    '!', "'", '(', ')', '/', '*',
)  # fmt: skip
_PLAIN = """
    copy reverse sort shuffle insert remove replace compute solve echo capital sentence words
    null true false Hello hello yes no
"""
_SPACED = "world and of in to for with on what who how from that it you"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% else %}{{ raise_exception('the roles are system, user and assistant') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return every token by its id, in the byte-level alphabet."""
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ("".join(part for part, _ in byte_level.pre_tokenize_str(t)) for t in _texts())
    return list(dict.fromkeys([*SPECIAL, *sorted(ByteLevel.alphabet()), *spelled]))


def build() -> Tokenizer:
    """Return the tokenizer. Law: decode(encode(text)) is text, whatever the text."""
    tokens = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[], ignore_merges=True))
    longest_first = sorted((text for text in GLUE if len(text) > 1), key=len, reverse=True)
    glue = "|".join(re.escape(text) for text in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{glue}| ?[A-Za-z]+|[\\s\\S]"), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write(folder: Path) -> int:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; return the size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[END],
        "mask_token": SPECIAL[MASK],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", {"eos_token_id": END, "pad_token_id": END})
    return tokenizer.get_vocab_size()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file as Hugging Face does."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of one user turn and the opening of the answer, as the template has them."""
    return [USER, *tokenizer.encode(prompt).ids, ASSISTANT]


def _texts() -> Iterator[str]:
    yield from GLUE
    yield from _PLAIN.split()
    keys = (*extraction.WORDS, *extraction.DIGITS)
    nouns = (*w.ANIMALS, *w.JOBS)
    yield from (*w.FIRST_NAMES, *w.CITIES, *w.COLORS, *nouns, *keys, *w.CAPITALS)
    yield from (word.capitalize() for word in w.DETERMINERS)
    spaced = (*w.LAST_NAMES, *nouns, *w.SIZES, *w.VERBS, *w.DETERMINERS, *_SPACED.split())
    yield from (f" {word}" for word in spaced)


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(f"{write(args.folder)} tokens")


if __name__ == "__main__":
    main()
