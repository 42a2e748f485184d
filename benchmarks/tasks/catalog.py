"""All tasks by name: how a case is made, and which answers are right."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.tasks import extraction, lists, numbers, squares, text
from benchmarks.tasks.case import TEMPLATES, Case, below, generator, word
from benchmarks.tasks.lists import Judge, Make

LONGEST = 6  # names in a list


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question."""

    make: Make
    judge: Judge


TASKS: dict[str, Task] = {
    "copy": Task(lists.copy, lists.same_list),
    "reverse": Task(lists.reverse, lists.same_list),
    "sort": Task(lists.sort, lists.same_list),
    "insert_index": Task(lists.insert_index, lists.same_list),
    "remove_index": Task(lists.remove_index, lists.same_list),
    "replace_index": Task(lists.replace_index, lists.same_list),
    "insert_random": Task(lists.insert_random, lists.is_insertion),
    "remove_random": Task(lists.remove_random, lists.is_removal),
    "replace_random": Task(lists.replace_random, lists.is_replacement),
    "shuffle": Task(lists.shuffle, lists.is_shuffle),
    "latin_square": Task(squares.latin_square, squares.is_square),
    "words_to_sentence": Task(text.words_to_sentence, text.is_sentence),
    "json_extract": Task(extraction.json_extract, extraction.same_object),
    "add": Task(numbers.add, numbers.same_text),
    "chain": Task(numbers.chain, numbers.same_text),
    "echo": Task(text.echo, numbers.same_text),
}
_POSITIONS = {name: i for i, name in enumerate(TASKS)}


def make_case(
    task: str, seed: int, index: int, *, template: int | None = None, longest: int = LONGEST
) -> Case:
    """Return one case. Law: the same arguments give the same case on every machine.

    Args:
        task: A name in TASKS.
        seed: One of TRAINING_SEEDS or HELD_OUT_SEEDS.
        index: Which of the seed's cases.
        template: 0..2; None: drawn among the trained ones.
        longest: Names of the longest list, keys of the largest object, digits of a number.
    Raises:
        KeyError: there is no such task.
        ValueError: there is no such template.
    """
    if template is not None and not 0 <= template < TEMPLATES:
        raise ValueError(f"template must be 0 to {TEMPLATES - 1}, not {template}")
    rng = generator(task, seed, index)
    question = TASKS[task].make(rng, longest)
    drawn = below(rng, TEMPLATES - 1) if template is None else template
    return word(task, _POSITIONS[task], question, drawn)


def judge(case: Case, answer: str) -> bool:
    """Say whether the answer is right, read leniently where the task allows it."""
    return TASKS[case.task].judge(case, answer)


def is_gold(case: Case, answer: str) -> bool:
    """Say whether the answer is the gold one to the letter."""
    return answer == case.gold
