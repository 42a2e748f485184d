"""A request's own checks beside a grammar, or alone: what is accepted, and when a text may end."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from plait.decoders.constrained.checked import CheckedConstraint, SpelledTokens
from plait.decoders.contract.check import TextVerdict
from plait.decoders.contract.constraint import Constraint, is_exact
from plait.decoders.contract.registry import Options
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, byte_tokens, load
from tests.fixtures.source_tree import ROOT

TOKENS = SpelledTokens(BYTES_AND_PIECES.token_bytes, frozenset({EOS}))


class Balanced:
    """As many b as a in the end, never more on the way; it keeps what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def verdict(self, text: str) -> TextVerdict:
        self.seen.append(text)
        depth = 0
        for letter in text:
            depth += (letter == "a") - (letter == "b")
            if depth < 0:
                return "dead"
        return "alive" if depth else "complete"


def _accepted(constraint: Constraint, text: str) -> int:
    """Return how many bytes of a text are accepted; the constraint stands behind them."""
    count = 0
    while count < len(text) and constraint.accept_token(byte_tokens(text)[count]):
        count += 1
    return count


def test_a_check_alone_allows_every_token_and_refuses_what_it_calls_dead() -> None:
    constraint = CheckedConstraint([Balanced()], TOKENS)
    bitmask = torch.full((1, 9), -1, dtype=torch.int32)

    assert not is_exact(constraint)
    assert not constraint.fill_bitmask(bitmask, 0)
    assert bool((bitmask == -1).all())
    assert _accepted(constraint, "aabxb") == 5
    assert constraint.is_accepting()
    assert not constraint.accept_token(ord("b"))
    assert _accepted(constraint, "a") == 1
    assert not constraint.is_accepting()
    assert not constraint.accept_token(EOS)
    constraint.rollback(1)
    assert constraint.accept_token(EOS)


def test_a_grammar_and_a_check_hold_both() -> None:
    constraint = CheckedConstraint([Balanced()], TOKENS, load("regex", "[ab]{2,4}"))

    assert _accepted(constraint.fork(), "ba") == 0
    assert _accepted(constraint.fork(), "abab") == 4
    assert _accepted(constraint.fork(), "abx") == 2
    assert constraint.min_tokens() == len(constraint.closing_tokens()) == 2
    whole = constraint.fork()
    assert _accepted(whole, "aabb") == 4
    assert whole.is_terminated()
    half = constraint.fork()
    assert _accepted(half, "aaba") == 4
    assert not half.is_accepting() and not half.is_terminated()


def test_forks_and_rollbacks_judge_their_own_text() -> None:
    check = Balanced()
    constraint = CheckedConstraint([check], TOKENS)
    assert _accepted(constraint, "aa") == 2
    twin = constraint.fork()
    constraint.rollback(1)
    assert _accepted(constraint, "b") == 1
    assert _accepted(twin, "bbb") == 2
    check.seen.clear()

    assert constraint.is_accepting() and twin.is_accepting()
    assert check.seen == ["ab", "aabb"]


def test_a_character_is_judged_when_it_is_whole() -> None:
    check = Balanced()
    constraint = CheckedConstraint([check], TOKENS)
    for byte in "é".encode():
        assert constraint.accept_token(byte)

    assert check.seen == ["", "é"]


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    """Return the example package of docs/examples."""
    path = ROOT / "docs" / "examples" / "syntax_checks" / "syntax_checks.py"
    spec = importlib.util.spec_from_file_location("syntax_checks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["syntax_checks"] = module
    spec.loader.exec_module(module)
    return module


PYTHON: dict[str, TextVerdict] = {
    "": "alive",
    "x = (1,": "alive",
    "x = = 1": "alive",  # the line is not over
    "x = = 1\n": "dead",
    "def f(x):\n": "alive",
    "def f(x):\n    return x": "complete",
    "if x:\n    y\nelse:\n": "alive",
    "for i in x:\ny\n": "dead",
    "'abc": "alive",
    "'abc\n": "dead",
    '"""abc\n': "alive",
    "```python\n": "dead",
    "\x00\n": "dead",
}


@pytest.mark.parametrize(("text", "want"), PYTHON.items())
def test_python_is_judged_line_by_line(examples: ModuleType, text: str, want: TextVerdict) -> None:
    assert examples.PythonSyntax(Options()).verdict(text) == want


def test_behind_dead_python_everything_is_dead(examples: ModuleType) -> None:
    check = examples.PythonSyntax(Options())
    for head in (text for text, verdict in PYTHON.items() if verdict == "dead"):
        assert {check.verdict(head + more) for more in ("x", "\n", "x = 1\n", "'''")} == {"dead"}


SQL: dict[str, TextVerdict] = {
    "": "alive",
    "SELECT (": "alive",
    "SELECT a FROM t": "complete",
    "SELECT a FROM t WHERE (": "alive",
    "SELECT a FROM t;": "complete",
    "SELECT FROM WHERE;": "dead",
    "SELECT a FROM t; DELETE FROM t": "complete",
}


@pytest.mark.parametrize(("text", "want"), SQL.items())
def test_sql_is_judged_statement_by_statement(
    examples: ModuleType, text: str, want: TextVerdict
) -> None:
    pytest.importorskip("sqlglot")
    assert examples.SqlSyntax(examples.SqlOptions()).verdict(text) == want
