"""Sums of numbers, added up step by step: a task whose steps can be checked one by one.

prompt:      481+72+930+155:
completion:  481+72=553
             553+930=1483
             1483+155=1638
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

NUM_TERMS = 8
LARGEST = 9
END = 0  # the token that ends a text
CHARACTERS = "\n+0123456789:="  # tokens 1, 2, ...
MAX_TOKENS = 96  # of a completion


def problem(rng: random.Random) -> list[int]:
    """Return the terms of a sum."""
    return [rng.randint(1, LARGEST) for _ in range(NUM_TERMS)]


def prompt_of(terms: list[int]) -> str:
    """Return the text that a completion follows."""
    return "+".join(map(str, terms)) + ":"


def steps_of(terms: list[int]) -> list[str]:
    """Return the right steps, each with its line break."""
    found, total = [], terms[0]
    for term in terms[1:]:
        found.append(f"{total}+{term}={total + term}\n")
        total += term
    return found


def is_right(terms: list[int], completion: str) -> bool:
    """Tell whether a completion is all of the right steps."""
    return completion == "".join(steps_of(terms))


def encode(text: str) -> list[int]:
    """Return the tokens of a text."""
    return [1 + CHARACTERS.index(character) for character in text]


def read(prompt: str, completion: str, *, is_complete: bool) -> list[int]:
    """Return the tokens that a verifier reads: the whole steps, and the end of a complete text."""
    steps = completion if is_complete else completion[: completion.rfind("\n") + 1]
    return [*encode(prompt + steps), *[END] * is_complete]


def decode(token_ids: list[int]) -> str:
    """Return the text of tokens, up to the one that ends it."""
    text = "".join("\0" if token == END else CHARACTERS[token - 1] for token in token_ids)
    return text.partition("\0")[0]


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token for each character, as the server reads it."""
    spelled = [ByteLevel(add_prefix_space=False).pre_tokenize_str(c)[0][0] for c in CHARACTERS]
    vocabulary = {"<|end|>": END} | {token: i for i, token in enumerate(spelled, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
