"""Operations on a list of names. Source of the ten tasks: ParallelBench, arXiv:2510.04767.

Ours have other names and a terser prompt. The random ones have many right answers, and the gold
answer is one of them drawn afresh, so that their tokens truly depend on each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.tasks.case import (
    Case,
    Question,
    below,
    deal,
    pick,
    read_list,
    write_list,
)
from benchmarks.tasks.words import FIRST_NAMES, LAST_NAMES

Make = Callable[[random.Random, int], Question]
Judge = Callable[[Case, str], bool]

SHORTEST = 3  # of an evaluated list


def people(rng: random.Random, count: int) -> list[str]:
    """Draw full names whose first names differ."""
    return [f"{first} {pick(rng, LAST_NAMES)}" for first in deal(rng, FIRST_NAMES, count)]


def _length(rng: random.Random, longest: int) -> int:
    shortest = min(SHORTEST, longest)
    return shortest + below(rng, longest - shortest + 1)


def _ask(verb: str, items: Sequence[str], gold: Sequence[str], added: str = "") -> Question:
    return Question(verb, write_list(items), write_list(gold), items=tuple(items), added=added)


def copy(rng: random.Random, longest: int) -> Question:
    """Ask for the same list."""
    items = people(rng, _length(rng, longest))
    return _ask("copy", items, items)


def reverse(rng: random.Random, longest: int) -> Question:
    """Ask for the list backwards."""
    items = people(rng, _length(rng, longest))
    return _ask("reverse", items, items[::-1])


def sort(rng: random.Random, longest: int) -> Question:
    """Ask for the list in the order of the alphabet."""
    items = people(rng, _length(rng, longest))
    return _ask("sort", items, sorted(items))


def shuffle(rng: random.Random, longest: int) -> Question:
    """Ask for any other order."""
    items = people(rng, _length(rng, longest))
    gold = deal(rng, items)
    while gold == items:
        gold = deal(rng, items)
    return _ask("shuffle", items, gold)


def insert_index(rng: random.Random, longest: int) -> Question:
    """Ask for one more name, at a position counted from 0."""
    added, *items = people(rng, _length(rng, longest))  # the answer has the drawn length
    at = below(rng, len(items) + 1)
    verb = f'insert "{added}" at {at}'
    return _ask(verb, items, [*items[:at], added, *items[at:]], added)


def insert_random(rng: random.Random, longest: int) -> Question:
    """Ask for one more name, anywhere."""
    added, *items = people(rng, _length(rng, longest))
    at = below(rng, len(items) + 1)
    verb = f'insert "{added}" anywhere'
    return _ask(verb, items, [*items[:at], added, *items[at:]], added)


def remove_index(rng: random.Random, longest: int) -> Question:
    """Ask for the list without the name at a position."""
    items = people(rng, _length(rng, longest))
    at = below(rng, len(items))
    return _ask(f"remove item {at}", items, [*items[:at], *items[at + 1 :]])


def remove_random(rng: random.Random, longest: int) -> Question:
    """Ask for the list without one name, whichever."""
    items = people(rng, _length(rng, longest))
    at = below(rng, len(items))
    return _ask("remove any item", items, [*items[:at], *items[at + 1 :]])


def replace_index(rng: random.Random, longest: int) -> Question:
    """Ask for another name at a position."""
    added, *items = people(rng, _length(rng, longest) + 1)
    at = below(rng, len(items))
    verb = f'replace item {at} by "{added}"'
    return _ask(verb, items, [*items[:at], added, *items[at + 1 :]], added)


def replace_random(rng: random.Random, longest: int) -> Question:
    """Ask for another name at any position."""
    added, *items = people(rng, _length(rng, longest) + 1)
    at = below(rng, len(items))
    verb = f'replace any item by "{added}"'
    return _ask(verb, items, [*items[:at], added, *items[at + 1 :]], added)


def same_list(case: Case, answer: str) -> bool:
    """Accept the gold list and no other."""
    return read_list(answer) == read_list(case.gold)


def is_shuffle(case: Case, answer: str) -> bool:
    """Accept every other order of the same names."""
    items = read_list(answer)
    return items is not None and sorted(items) == sorted(case.items) and items != [*case.items]


def is_insertion(case: Case, answer: str) -> bool:
    """Accept the new name, once, at any place of the unchanged list."""
    items = read_list(answer)
    if items is None or items.count(case.added) != 1:
        return False
    return [item for item in items if item != case.added] == [*case.items]


def is_removal(case: Case, answer: str) -> bool:
    """Accept the list without any one of its names."""
    items, given = read_list(answer), [*case.items]
    return items in [given[:i] + given[i + 1 :] for i in range(len(given))]


def is_replacement(case: Case, answer: str) -> bool:
    """Accept the new name in the place of any one."""
    items, given = read_list(answer), [*case.items]
    return items in [[*given[:i], case.added, *given[i + 1 :]] for i in range(len(given))]
