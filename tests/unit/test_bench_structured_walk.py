"""Walking texts through masks: what is counted, and what the walkers of this machine say."""

from __future__ import annotations

import json

import pytest

from benchmarks.machine import this_machine
from benchmarks.maskbench import Case
from benchmarks.structured.engines import ENGINES, Refused
from benchmarks.structured.walking.command import markdown
from benchmarks.structured.walking.measure import WalkTimes, walk_cases
from benchmarks.structured.walking.walkers import WALKERS
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer

MODEL = "smollm2-135m-instruct"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TESTS = [{"valid": True, "data": {"a": 12}}, {"valid": False, "data": {"a": "x"}}]
TESTS += [{"valid": True, "data": {"a": "wrongly called valid"}}]


@pytest.mark.parametrize("name", WALKERS)
def test_engines_walk_to_the_end_of_what_they_allow(name: str) -> None:
    if not ENGINES[name].version:
        pytest.skip(f"{ENGINES[name].distribution} is not installed")
    tokenizer = load_tokenizer(resolve(MODEL))
    walker = WALKERS[name](MODEL, tokenizer)
    given = [Case("a", SCHEMA, TESTS), Case("b", {"type": 3}, [])]
    have = walk_cases(given, walker, tokenizer.encode, 60)

    assert (have.accepted, have.refused, have.ended, have.broken) == (1, 1, 1, 1)
    first = len(tokenizer.encode(json.dumps({"a": 12})))
    assert len(have.compile) == 2
    assert first < len(have.accept) < len(have.mask)


class Letters:
    """Allows one text of bytes."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text.encode(), 0

    def write_mask(self) -> None:
        """Nothing is written."""

    def allows(self, token_id: int) -> bool:
        """Tell whether it is the next byte."""
        return self.at < len(self.text) and self.text[self.at] == token_id

    def accept(self, token_id: int) -> bool:
        """Advance."""
        self.at += 1
        return True

    def rewind(self, num_tokens: int) -> None:
        """Go back."""
        self.at -= num_tokens


def test_every_instance_is_walked_from_the_start() -> None:
    def compile_schema(schema: str) -> Letters:
        if json.loads(schema) == "refuse":
            raise Refused("no")
        return Letters("[1, 2]")

    tests = [{"valid": True, "data": [1, each]} for each in (2, 3, 2)]
    given = [Case("a", {}, tests), Case("b", "refuse", tests)]
    have = walk_cases(given, compile_schema, lambda text: list(text.encode()), 60)

    assert (have.accepted, have.refused, have.ended, have.broken) == (1, 1, 2, 1)
    assert (len(have.mask), len(have.accept)) == (17, 16)


def test_the_report_names_what_is_left_out() -> None:
    times = WalkTimes("1.0", accepted=3, refused=1, ended=2, broken=1)
    times.compile, times.mask, times.accept = [0.001, 0.003], [1e-6, 3e-6], [2e-6]
    text = markdown({"one": times}, ["two: it is not installed"], this_machine())

    assert "| one 1.0 | 3 of 4 | 2 of 3 | 0.00 | 2.00 |" in text
    assert "Left out: two: it is not installed" in text
