"""Compile a model's chat template and render it within a bounded time and size.

A template is a program from the model's files; requests never contain one. It runs in Jinja's
immutable sandbox. Each loop iteration, call and output checks the clock, so rendering ends within
the limit without a thread or process to kill. Not prevented is a single expression that allocates
much memory: only a hostile model file can contain one, and its weights are as hostile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_SECONDS = 2.0
RENDER_CHARS = 16 * 2**20  # twice the largest body

_deadline: ContextVar[float] = ContextVar("deadline")


class RenderLimitError(TemplateError):
    """The template ran for too long, or its output is too long."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled template, and the names that occur in it."""

    template: Template
    variables: frozenset[str]  # variables that it reads
    mentions: frozenset[str]  # all attributes, keys and string constants in it

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text.

        Raises:
            RenderLimitError: RENDER_SECONDS or RENDER_CHARS are exceeded.
            TemplateError: the template refuses its input.
        A template may also raise any of UNEXPECTED for input that it does not expect.
        """
        token = _deadline.set(time.monotonic() + RENDER_SECONDS)
        try:
            return "".join(_bounded(self.template, variables))
        finally:
            _deadline.reset(token)


# Python's errors for an expression whose operands do not fit.
UNEXPECTED = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@lru_cache(maxsize=64)
def compile_template(source: str) -> ChatTemplate:
    """Compile a template.

    Raises:
        TemplateError: the source does not parse.
    """
    environment = _Environment()
    tree = environment.parse(source)
    variables = frozenset(meta.find_undeclared_variables(tree))
    mentions = frozenset(_mentions(tree))
    for loop in tree.find_all(nodes.For):
        loop.body.insert(0, _tick())
    code = environment.compile(tree)
    template = Template.from_code(environment, code, environment.make_globals(None))
    return ChatTemplate(template, variables, mentions)


def _bounded(template: Template, variables: Mapping[str, Any]) -> list[str]:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        _check_clock()
        size += len(piece)
        if size > RENDER_CHARS:
            raise RenderLimitError(f"the rendered chat is longer than {RENDER_CHARS} characters")
        pieces.append(piece)
    return pieces


def _check_clock() -> None:
    if time.monotonic() > _deadline.get():
        raise RenderLimitError(f"rendering the chat took longer than {RENDER_SECONDS:g} s")


def _tick() -> nodes.Stmt:
    return nodes.ExprStmt(nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None))


def _mentions(tree: nodes.Template) -> set[str]:
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = (node.value for node in tree.find_all(nodes.Const))
    return attributes | {value for value in constants if isinstance(value, str)}


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it: the dialect that transformers defined."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def tick(self) -> None:
        """Check the clock; called in each loop iteration."""
        _check_clock()

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_clock()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse the two operators that make large values from small ones."""
        if operator == "**" or _repeated(left, right) > RENDER_CHARS:
            raise RenderLimitError(f"{operator!r} would make too large a value")
        return super().call_binop(context, operator, left, right)


def _repeated(left: Any, right: Any) -> int:
    """Return the length of left * right if one of them is a sequence, else 0."""
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            return len(sequence) * times
    return 0


class _Generation(Extension):
    """{% generation %} marks the assistant's text for training; only its body matters here."""

    tags = {"generation"}  # noqa: RUF012 - declared as a plain set upstream

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
