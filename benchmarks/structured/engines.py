"""The engines that compile JSON schemas and match texts: plait's own and installed libraries.

All of them get the vocabulary of the 256 bytes: what is legal does not depend on it. Objects are
open and blanks optional where the engine has such a choice, as the standard has it; plait is there
in several styles (JsonStyle).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, metadata

from benchmarks.maskbench import choose_vocabulary, is_complete, refusal
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.load import ConstraintLoader, LoadedConstraint
from plait.decoders.constrained.spec import (
    PRETTY,
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    Unsatisfiable,
)
from plait.decoders.constrained.vocabulary import Vocabulary

MAX_BYTES = 2**20  # of a schema
LOG_PREFIX = re.compile(r"^\[[\d:]+\] \S+:\d+: ")

Matcher = Callable[[bytes], bool]  # whether a whole text is legal
Compiler = Callable[[str], Matcher]  # of a JSON schema; raises Refused


class Refused(ValueError):
    """The engine does not take the schema; the message is its reason."""


class NoValue(Refused):
    """The engine has found that no value is valid."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is made, and the distribution that must be installed for it."""

    distribution: str
    make: Callable[[], Compiler]

    @property
    def version(self) -> str:
        """The installed version; "" if it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return ""


def compile_loaded(spec: ConstraintSpec, vocabulary: Vocabulary) -> LoadedConstraint:
    """Compile as the compile service does and load as a worker does; raises ConstraintError."""
    done = compile_constraint(spec, vocabulary, ConstraintLimits(max_bytes=MAX_BYTES))
    return ConstraintLoader(vocabulary).load("", done.table)


def make_plait(style: JsonStyle = PRETTY) -> Compiler:
    """Return plait's compiler and matcher, as a worker loads it."""
    vocabulary = choose_vocabulary(None)

    def compile_schema(schema: str) -> Matcher:
        spec = ConstraintSpec("json_schema", schema, style=style)
        try:
            start = compile_loaded(spec, vocabulary)
        except Unsatisfiable as error:
            raise NoValue(str(error)) from None
        except ConstraintError as error:
            raise Refused(refusal(error)) from None
        return lambda text: is_complete(start, text, vocabulary)

    return compile_schema


def make_llguidance() -> Compiler:
    """Return llguidance's compiler and matcher."""
    library = import_module("llguidance")
    tokenizer = library.LLTokenizer("byte")

    def compile_schema(schema: str) -> Matcher:
        grammar = library.LLMatcher.grammar_from_json_schema(schema)
        if reason := library.LLMatcher.validate_grammar(grammar, tokenizer):
            raise Refused(_first_line(reason))
        start = library.LLMatcher(tokenizer, grammar, log_level=0)

        def is_legal(text: bytes) -> bool:
            matcher = start.deep_copy()
            return bool(matcher.try_consume_tokens([*text]) == len(text) and matcher.is_accepting())

        return is_legal

    return compile_schema


def make_xgrammar() -> Compiler:
    """Return the matcher of xgrammar behind its own converter of schemas."""
    library = import_module("xgrammar")
    end = 256
    tokens = [*(bytes([byte]) for byte in range(end)), b"</s>"]
    info = library.TokenizerInfo(tokens, library.VocabType.RAW, stop_token_ids=[end])
    compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile_schema(schema: str) -> Matcher:
        try:
            done = compiler.compile_json_schema(schema, strict_mode=False)
        except (RuntimeError, ValueError) as error:
            raise Refused(_first_line(str(error))) from None

        def is_legal(text: bytes) -> bool:
            matcher = library.GrammarMatcher(done)
            return all(matcher.accept_token(byte) for byte in text) and matcher.is_completed()

        return is_legal

    return compile_schema


def _first_line(reason: str) -> str:
    """Return the first line without the time and the source file that xgrammar begins it with."""
    return LOG_PREFIX.sub("", reason.strip()).split("\n", 1)[0][:90]


STANDARD = "plait-standard"  # everything that the standard calls valid, formats not asserted
ANY = JsonStyle("any", "open", "any", "any", "standard", "any")
ENGINES = {
    "plait": Engine("plait", make_plait),
    "plait-open": Engine("plait", partial(make_plait, JsonStyle(objects="open"))),
    "plait-any": Engine("plait", partial(make_plait, ANY)),
    STANDARD: Engine("plait", partial(make_plait, replace(ANY, formats="annotate"))),
    "llguidance": Engine("llguidance", make_llguidance),
    "xgrammar": Engine("xgrammar", make_xgrammar),
}
OWN = tuple(name for name, engine in ENGINES.items() if engine.distribution == "plait")
