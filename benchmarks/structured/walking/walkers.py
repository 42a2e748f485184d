"""Engines that walk texts token by token over one model's vocabulary: plait, and libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch

from benchmarks.maskbench import choose_vocabulary, refusal
from benchmarks.structured.engines import ANY, ENGINES, Refused, compile_loaded
from plait.decoders.constrained.spec import (
    PRETTY,
    ConstraintError,
    ConstraintSpec,
    JsonStyle,
)
from plait.server.prompt.tokenizer import Tokenizer

WORD = 32  # bits of a word of a bitmask


class Walk(Protocol):
    """A compiled schema at some place of a text."""

    def write_mask(self) -> None:
        """Write the legal tokens to a bitmask."""

    def allows(self, token_id: int) -> bool:
        """Tell whether the bitmask allows a token."""

    def accept(self, token_id: int) -> bool:
        """Advance, and see how many tokens are needed to end, where the engine knows that."""

    def rewind(self, num_tokens: int) -> None:
        """Go back."""


Walker = Callable[[str], Walk]  # compiles a JSON schema; raises Refused


@dataclass(frozen=True, slots=True)
class TokenWalk:
    """A matcher and its bitmask."""

    matcher: Any
    bitmask: Any  # [1, words]
    fill: Callable[[], object]
    step: Callable[[int], object]

    def write_mask(self) -> None:
        """Write the legal tokens to the bitmask."""
        self.fill()

    def allows(self, token_id: int) -> bool:
        """Tell whether the bitmask allows a token."""
        return bool(int(self.bitmask[0, token_id // WORD]) >> token_id % WORD & 1)

    def accept(self, token_id: int) -> bool:
        """Advance."""
        return bool(self.step(token_id))

    def rewind(self, num_tokens: int) -> None:
        """Go back."""
        self.matcher.rollback(num_tokens)


def make_plait(model: str, tokenizer: Tokenizer, style: JsonStyle = PRETTY) -> Walker:
    """Return plait's: compiled as the compile service does, loaded as a worker does."""
    del tokenizer
    vocabulary = choose_vocabulary(model)
    vocabulary.prepare()
    words = -(-len(vocabulary.token_bytes) // WORD)
    bitmask = torch.zeros((1, words), dtype=torch.int32)

    def compile_schema(schema: str) -> Walk:
        spec = ConstraintSpec("json_schema", schema, style=style)
        try:
            constraint = compile_loaded(spec, vocabulary)
        except ConstraintError as error:
            raise Refused(refusal(error)) from None

        def step(token_id: int) -> bool:
            is_accepted = constraint.accept_token(token_id)
            constraint.min_tokens()
            return is_accepted

        return TokenWalk(constraint, bitmask, lambda: constraint.fill_bitmask(bitmask, 0), step)

    return compile_schema


def make_llguidance(model: str, tokenizer: Tokenizer) -> Walker:
    """Return llguidance's matcher behind its own reader of schemas."""
    del model
    library, masks = import_module("llguidance"), import_module("llguidance.numpy")
    spelled = library.LLTokenizer(library.TokenizerWrapper(_Wrapped(tokenizer)))
    bitmask = masks.allocate_token_bitmask(1, spelled.vocab_size)

    def compile_schema(schema: str) -> Walk:
        grammar = library.LLMatcher.grammar_from_json_schema(schema)
        matcher = library.LLMatcher(spelled, grammar, log_level=0)
        if matcher.is_error():
            raise Refused(matcher.get_error().split("\n", 1)[0][:90])

        def fill() -> object:
            return masks.fill_next_token_bitmask(matcher, bitmask, 0)

        return TokenWalk(matcher, bitmask, fill, matcher.consume_token)

    return compile_schema


class _Wrapped:
    """A tokenizer as llguidance's wrapper takes it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = tokenizer.token_bytes
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.tokens = [piece or b"\xff[%d]" % i for i, piece in enumerate(pieces)]
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)


def make_xgrammar(model: str, tokenizer: Tokenizer) -> Walker:
    """Return xgrammar's matcher behind its own converter of schemas, with open objects."""
    del model
    library = import_module("xgrammar")
    pieces = [piece or b"<s%d>" % i for i, piece in enumerate(tokenizer.token_bytes)]
    ends = sorted(tokenizer.eos_token_ids)
    info = library.TokenizerInfo(pieces, library.VocabType.RAW, stop_token_ids=ends)
    compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bitmask = library.allocate_token_bitmask(1, info.vocab_size)

    def compile_schema(schema: str) -> Walk:
        try:
            done = compiler.compile_json_schema(schema, strict_mode=False)
        except (RuntimeError, ValueError) as error:
            raise Refused(str(error)[:90]) from None
        matcher = library.GrammarMatcher(done)

        def fill() -> object:
            return matcher.fill_next_token_bitmask(bitmask, 0)

        return TokenWalk(matcher, bitmask, fill, matcher.accept_token)

    return compile_schema


MakeWalker = Callable[[str, Tokenizer], Walker]


def _make_open(model: str, tokenizer: Tokenizer) -> Walker:
    return make_plait(model, tokenizer, JsonStyle(objects="open"))


def _make_any(model: str, tokenizer: Tokenizer) -> Walker:
    return make_plait(model, tokenizer, ANY)


WALKERS: dict[str, MakeWalker] = {
    "plait": make_plait,
    "plait-open": _make_open,
    "plait-any": _make_any,
    "llguidance": make_llguidance,
    "xgrammar": make_xgrammar,
}
assert WALKERS.keys() <= ENGINES.keys()
