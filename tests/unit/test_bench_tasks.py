"""The tasks: drawn alike everywhere, right by their own judge, and judged without favour."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import jsonschema
import pytest

from benchmarks.tasks.case import (
    HELD_OUT_SEEDS,
    HELD_OUT_TEMPLATE,
    TEMPLATES,
    TRAINING_SEEDS,
    Case,
    read_list,
    write_list,
)
from benchmarks.tasks.catalog import TASKS, is_gold, judge, make_case
from benchmarks.tasks.extraction import SHAPES
from benchmarks.tasks.words import FIRST_NAMES, LAST_NAMES

SEED = HELD_OUT_SEEDS.start


def _cases(task: str, count: int = 60) -> list[Case]:
    return [make_case(task, SEED, i) for i in range(count)]


def _listing(*names: str) -> str:
    return write_list(names)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("longest", [2, 4, 6])
def test_the_gold_answer_is_right(task: str, longest: int) -> None:
    for i in range(60):
        case = make_case(task, SEED, i, longest=longest)
        assert judge(case, case.gold) and is_gold(case, case.gold)


@pytest.mark.parametrize("task", TASKS)
def test_no_other_answer_of_the_task_is_right_but_its_own(task: str) -> None:
    cases = _cases(task)
    wrong = [(a, b) for a, b in itertools.permutations(cases, 2) if a.gold != b.gold]
    right = [(a, b) for a, b in wrong if judge(a, b.gold)]
    assert all(set(a.prompt) == set(b.prompt) for a, b in right)  # the same question again


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("answer", ["", " ", "[", "]", "[]", "{}", "null", ".", "A", "x,y"])
def test_rubbish_is_wrong(task: str, answer: str) -> None:
    assert not any(judge(case, answer) for case in _cases(task, 20) if case.gold != answer)


def test_a_case_is_the_same_in_another_process() -> None:
    code = (
        "from benchmarks.tasks.catalog import TASKS, make_case\n"
        f"print([make_case(task, {SEED}, 7).prompt for task in TASKS])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([make_case(task, SEED, 7).prompt for task in TASKS])


def test_known_cases_stay_as_they_are() -> None:
    assert make_case("reverse", 0, 0, template=0).prompt == KNOWN_REVERSE
    assert make_case("add", 0, 1, template=1).prompt == "Now compute, given 624-2"


KNOWN_REVERSE = 'reverse: ["Jonas Dale", "Kira Hale", "Olga Evans", "Ezra Jensen", "Nadia Adler"]'


def test_training_never_draws_a_held_out_seed_or_template() -> None:
    assert not set(TRAINING_SEEDS) & set(HELD_OUT_SEEDS)
    drawn = {make_case(task, 0, i).template for task in TASKS for i in range(50)}
    assert drawn == set(range(TEMPLATES)) - {HELD_OUT_TEMPLATE}


def test_a_held_out_template_is_a_trained_one_of_another_task() -> None:
    def frame(task: str, template: int) -> str:
        case = make_case(task, SEED, 0, template=template)
        return case.prompt.replace(write_list(case.items), "@").replace(task, "#")

    lists = ["copy", "reverse", "sort", "shuffle"]
    trained = {frame(task, template) for task in lists for template in range(TEMPLATES - 1)}
    assert {frame(task, HELD_OUT_TEMPLATE) for task in lists} <= trained


def test_templates_word_the_same_question() -> None:
    golds = [make_case("sort", SEED, 3, template=template).gold for template in range(TEMPLATES)]
    assert len(set(golds)) == 1


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match="template must be 0 to 2, not 3"):
        make_case("copy", SEED, 0, template=TEMPLATES)


def test_names_differ_and_are_as_many_as_announced() -> None:
    assert (len(set(FIRST_NAMES)), len(set(LAST_NAMES))) == (64, 16)


@pytest.mark.parametrize("text", ["[]", "x [ ] y"])
def test_an_empty_list_is_read(text: str) -> None:
    assert read_list(text) == []


@pytest.mark.parametrize(
    "text", ['["A B", "C D"]', "Here: ['A B','C D'] so.", "[A B, C D]", '[ "A B" , "C D" ]']
)
def test_lists_are_read_leniently(text: str) -> None:
    assert read_list(text) == ["A B", "C D"]


ABC = Case("", "", "", 0, items=("a", "b", "c"), added="x")
RANDOM = {
    "shuffle": ([["c", "a", "b"]], [["a", "b", "c"], ["a", "b"], ["a", "a", "b"]]),
    "insert_random": (
        [["x", "a", "b", "c"], ["a", "b", "c", "x"]],
        [["a", "b", "c"], ["x", "a", "b", "c", "x"], ["x", "b", "a", "c"]],
    ),
    "remove_random": ([["a", "c"]], [["a", "b", "c"], ["c", "a"], ["a"], ["a", "x"]]),
    "replace_random": ([["a", "x", "c"]], [["a", "b", "c"], ["x", "x", "c"], ["x", "a", "c"]]),
}


@pytest.mark.parametrize("task", RANDOM)
def test_random_operations_have_many_right_answers_and_more_wrong_ones(task: str) -> None:
    right, wrong = RANDOM[task]
    verdicts = [TASKS[task].judge(ABC, _listing(*names)) for names in (*right, *wrong)]
    assert verdicts == [True] * len(right) + [False] * len(wrong)


def test_random_tasks_draw_their_gold_afresh() -> None:
    places = {
        read_list(case.gold).index(case.added) / len(case.items)  # type: ignore[union-attr]
        for case in _cases("insert_random")
    }
    assert len(places) > 5


def test_gold_objects_obey_their_schema_and_all_shapes_occur() -> None:
    cases = _cases("json_extract", 300)
    for case in cases:
        assert case.schema is not None
        jsonschema.validate(json.loads(case.gold), case.schema)
    assert {tuple(json.loads(case.gold)) for case in cases} == set(SHAPES)
    assert any(None in json.loads(case.gold).values() for case in cases)


def test_objects_are_compared_by_value() -> None:
    case = Case("json_extract", "", '{"age": 4, "name": null}', 0)
    assert judge(case, '{"name":null,"age":4}')
    assert not judge(case, '{"name":null,"age":"4"}')


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The big fox sees a hen.", True),
        ("Every fox sees one big hen.", True),
        ("The big fox sees a hen", False),
        ("the big fox sees a hen.", False),
        ("The fox big sees a hen.", False),
        ("The big fox a hen sees.", False),
        ("The big fox sees a hen the.", False),
        ("The small fox sees a hen.", False),
    ],
)
def test_sentences_are_parsed(answer: str, right: bool) -> None:
    case = Case("words_to_sentence", "", "", 0, items=("big", "fox", "sees", "hen"))
    assert judge(case, answer) is right


def test_squares_are_checked_along_rows_and_columns() -> None:
    case = Case("latin_square", "", "", 0, items=tuple("ABCD"))
    assert judge(case, "A,B,C,D\nB,A,D,C\nC,D,A,B\nD,C,B,A")
    assert not judge(case, "A,B,C,D\nA,B,C,D\nC,D,A,B\nD,C,B,A")
    assert not judge(case, "A,B,C,D\nB,A,D,C\nC,D,A,B\nD,C,B,B")
    assert not judge(case, "A,B,C,D\nB,A,D,C\nC,D,A,B")


def test_sums_are_right() -> None:
    for i in range(200):
        case = make_case("add", SEED, i, template=0)
        a, sign, b = re.match(r"compute: (\d+)([+-])(\d+)$", case.prompt).groups()  # type: ignore[union-attr]
        assert int(case.gold) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
