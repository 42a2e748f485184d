"""Checks in a package of their own: the answer is Python that compiles, or SQL that parses.

Both judge what is finished: Python by whole lines, SQL by statements that a semicolon ends. What is
still being written may become anything, so it is alive.
"""

from __future__ import annotations

import ast
import codeop
import importlib
import warnings
from functools import lru_cache

from pydantic import Field

from plait.decoders.contract.check import TextVerdict
from plait.decoders.contract.registry import Method, Options


class PythonSyntax:
    """Python's own compiler decides; nothing is run."""

    def __init__(self, options: Options) -> None:
        """Take no options."""

    def verdict(self, text: str) -> TextVerdict:
        """Return "dead" if no further line can mend a whole one, "complete" if it all compiles."""
        lines, newline, _ = text.rpartition("\n")
        if newline and not _may_go_on(lines + newline):
            return "dead"
        return "complete" if _compiles(text) else "alive"


@lru_cache(4096)  # the same lines are judged again with every token of the next one
def _may_go_on(lines: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the program says, not whether it is one
        try:
            codeop.compile_command(lines, symbol="exec")
        except (SyntaxError, ValueError, OverflowError):
            return False
    return True


def _compiles(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return bool(text.strip())


class SqlOptions(Options):
    """Options of sql-syntax."""

    dialect: str = Field(default="", max_length=32, description="as sqlglot names it; '': any")


class SqlSyntax:
    """sqlglot's parser decides."""

    def __init__(self, options: SqlOptions) -> None:
        self._dialect = options.dialect or None

    def verdict(self, text: str) -> TextVerdict:
        """Return "dead" if a statement in front of a semicolon doesn't parse."""
        statements, semicolon, rest = text.rpartition(";")
        if semicolon and not _parses(statements, self._dialect):
            return "dead"
        if not rest.strip():
            return "complete" if semicolon else "alive"
        return "complete" if _parses(rest, self._dialect) else "alive"


@lru_cache(4096)
def _parses(text: str, dialect: str | None) -> bool:
    sqlglot = importlib.import_module("sqlglot")  # only where it is installed and asked for
    try:
        found = sqlglot.parse(text, read=dialect)
    except sqlglot.errors.SqlglotError:
        return False
    return any(found) and not any(isinstance(each, sqlglot.exp.Command) for each in found)


PYTHON = Method(
    kind="check",
    name="python-syntax",
    summary="The answer is Python that compiles.",
    source="",
    target="syntax_checks:PythonSyntax",
)
SQL = Method(
    kind="check",
    name="sql-syntax",
    summary="The answer is SQL that parses.",
    source="",
    target="syntax_checks:SqlSyntax",
    options=SqlOptions,
)
