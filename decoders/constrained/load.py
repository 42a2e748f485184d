"""Bring a compiled constraint to life in a worker, and keep the ones in use."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import xgrammar

from plait.decoders.constrained.automaton import Automaton
from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar
from plait.decoders.constrained.vocabulary import Vocabulary

_AUTOMATON_BYTES = 64  # a guess of what one byte of grammar text costs once automata have run


def compile_for_matcher(text: str, vocabulary: Vocabulary) -> xgrammar.CompiledGrammar:
    """Return xgrammar's masks for a grammar in the form of grammar/for_matcher.py."""
    compiler = xgrammar.GrammarCompiler(
        vocabulary.xgrammar_info, max_threads=1, cache_enabled=False
    )
    return compiler.compile_grammar(text)


class ConstraintLoader:
    """A byte-bounded, least-recently-used cache of loaded grammars. Safe to call from threads."""

    def __init__(self, vocabulary: Vocabulary, cache_bytes: int = 256 * 2**20) -> None:
        self._vocabulary = vocabulary
        vocabulary.prepare()
        self._cache_bytes = cache_bytes
        self._loaded: OrderedDict[str, tuple[LoadedGrammar, int]] = OrderedDict()
        self._lock = Lock()

    def load(self, key: str, compiled: bytes, grammar: str) -> GrammarConstraint:
        """Return a constraint at its start.

        Args:
            key: content key of the constraint (plait.decoders.constrained.spec.content_key).
            compiled, grammar: as compile.compile_constraint returned them.
        Cost: 10-200 ms for usual schemas when the key is new (mostly without the GIL; never more
            than the compile service's deadline allowed), microseconds otherwise.
        """
        with self._lock:
            found = self._loaded.get(key)
            if found is None:
                loaded = self._build(compiled, grammar)
                size = loaded.compiled.memory_size_bytes + _AUTOMATON_BYTES * len(grammar)
                found = self._loaded[key] = (loaded, size)
                self._evict()
            self._loaded.move_to_end(key)
        return GrammarConstraint(found[0])

    def _build(self, compiled: bytes, grammar: str) -> LoadedGrammar:
        matched = compile_for_matcher(compiled.decode(), self._vocabulary)
        return LoadedGrammar(matched, Automaton(parse(grammar), self._vocabulary), self._vocabulary)

    def _evict(self) -> None:
        """Drop the least recently used grammars; sequences in flight keep theirs."""
        while len(self._loaded) > 1 and self._size() > self._cache_bytes:
            self._loaded.popitem(last=False)

    def _size(self) -> int:
        return sum(size for _, size in self._loaded.values())
