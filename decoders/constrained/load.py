"""Loads compiled constraints in a worker, and caches them."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from plait.decoders.constrained.distinct import DistinctConstraint
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar
from plait.decoders.constrained.restrict import restricted
from plait.decoders.constrained.spec import ALL_TOKENS, AllowedTokens, NoDistinctText
from plait.decoders.constrained.table import OperationTable, decode_table
from plait.decoders.constrained.vocabulary import Vocabulary

LoadedConstraint = GrammarConstraint | DistinctConstraint


class ConstraintLoader:
    """A byte-bounded, least-recently-used cache of loaded grammars. Safe to call from threads."""

    def __init__(self, vocabulary: Vocabulary, cache_bytes: int = 256 * 2**20) -> None:
        self._vocabulary = vocabulary
        vocabulary.prepare()
        self._cache_bytes = cache_bytes
        self._loaded: OrderedDict[tuple[str, AllowedTokens], LoadedGrammar] = OrderedDict()
        self._lock = Lock()

    def load(self, key: str, table: bytes, tokens: AllowedTokens = ALL_TOKENS) -> LoadedConstraint:
        """Return a constraint that has accepted no token yet.

        Args:
            key: content key of the constraint (plait.decoders.constrained.spec.content_key).
            table: as compile.compile_constraint returned it.
            tokens: the only tokens that masks, counts and closing tokens may use.
        Raises:
            ConstraintError: these tokens can't spell a text of the grammar.
            NoDistinctText: none was found whose members are distinct where they must be.
        Cost: a millisecond or two for usual schemas when the key is new, microseconds otherwise.
        """
        with self._lock:
            found = self._loaded.get((key, tokens))
            if found is None:
                found = self._loaded[key, tokens] = self._make(decode_table(table), tokens)
            self._loaded.move_to_end((key, tokens))
            self._evict()
        constraint = GrammarConstraint(found)
        if not found.marks:
            return constraint
        distinct = DistinctConstraint(constraint)
        if not distinct.is_possible:
            raise NoDistinctText("no answer was found whose items differ as uniqueItems asks")
        return distinct

    def _make(self, table: OperationTable, tokens: AllowedTokens) -> LoadedGrammar:
        if tokens == ALL_TOKENS:
            return LoadedGrammar(table, self._vocabulary)
        vocabulary = self._vocabulary.restricted(tokens)
        return LoadedGrammar(restricted(table, vocabulary), vocabulary)

    def _evict(self) -> None:
        """Drop the least recently used grammars; sequences in flight keep theirs."""
        while len(self._loaded) > 1 and self._size() > self._cache_bytes:
            self._loaded.popitem(last=False)

    def _size(self) -> int:
        return sum(grammar.num_bytes for grammar in self._loaded.values())
