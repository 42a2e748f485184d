"""Sentences of a template grammar, and answers of a word or two."""

from __future__ import annotations

import random

from benchmarks.tasks.case import Case, Question, deal, pick
from benchmarks.tasks.words import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLORS,
    DETERMINERS,
    FIRST_NAMES,
    JOBS,
    SIZES,
    VERBS,
)

_NOUNS = (*ANIMALS, *JOBS)
_ECHOES = (*FIRST_NAMES, *CITIES, *COLORS, *ANIMALS, *JOBS)


def words_to_sentence(rng: random.Random, longest: int) -> Question:
    """Ask for a sentence with four given words; `longest` is for lists and has no bearing here."""
    del longest
    nouns = deal(rng, _NOUNS, 2)
    size, verb = pick(rng, SIZES), pick(rng, VERBS)
    first, second = (pick(rng, DETERMINERS) for _ in range(2))
    gold = f"{first.capitalize()} {size} {nouns[0]} {verb} {second} {nouns[1]}."
    words = deal(rng, [size, verb, *nouns])
    return Question("sentence", f"words {' '.join(words)}", gold, items=tuple(words))


def is_sentence(case: Case, answer: str) -> bool:
    """Accept what the grammar derives with all the given words.

    sentence = determiner [size] noun verb determiner [size] noun "."
    """
    text = answer.strip()
    words = text[:-1].split(" ")
    if not text.endswith(".") or not text[0].isupper():
        return False
    words[0] = words[0].lower()
    if not all(word in words for word in case.items):
        return False
    after_subject = _noun_phrase(words)
    if not after_subject or after_subject[0] not in VERBS:
        return False
    return _noun_phrase(after_subject[1:]) == []


def _noun_phrase(words: list[str]) -> list[str] | None:
    """Return what follows a noun phrase; None where there is none."""
    if not words or words[0] not in DETERMINERS:
        return None
    rest = words[2:] if len(words) > 1 and words[1] in SIZES else words[1:]
    return rest[1:] if rest and rest[0] in _NOUNS else None


def echo(rng: random.Random, longest: int) -> Question:
    """Ask for a word or two back, or for a capital: short answers, with much padding behind."""
    if rng.random() < 0.2:
        country = pick(rng, sorted(CAPITALS))
        return Question("capital", country, CAPITALS[country])
    text = ", ".join(deal(rng, _ECHOES, 1 + (longest > 4 and rng.random() < 0.3)))
    return Question("echo", text, text)
