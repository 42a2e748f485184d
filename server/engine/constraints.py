"""Compiled constraints brought to life in the worker, without slowing its start."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from plait.server.prompt.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from plait.decoders.constrained.load import ConstraintLoader
    from plait.decoders.protocol import Constraint
    from plait.server.models.catalog import ModelFiles
    from plait.server.pool.messages import CompiledConstraint


class LazyConstraints:
    """Loads grammars; called on the engine's loader thread only.

    The matcher library takes a second or two to import, and the vocabulary must be read: neither
    is wanted before the first token of the first plain request, so `prepare` runs once the engine
    is up.
    """

    def __init__(self, files: ModelFiles, vocab_size: int, cache_bytes: int) -> None:
        """Take the model's files, and the width of its logits: other tokens are never drawn."""
        self._files = files
        self._vocab_size = vocab_size
        self._cache_bytes = cache_bytes

    def __call__(self, compiled: CompiledConstraint) -> Constraint:
        """Return a fresh constraint for one request."""
        return self._loader.load(compiled.key, compiled.table)

    def prepare(self) -> None:
        """Do now what the first call would do."""
        _ = self._loader

    @cached_property
    def _loader(self) -> ConstraintLoader:
        from plait.decoders.constrained.load import ConstraintLoader  # noqa: PLC0415, see above
        from plait.decoders.constrained.vocabulary import make_vocabulary  # noqa: PLC0415

        tokenizer = load_tokenizer(self._files)
        ends = (i for i in tokenizer.eos_token_ids if i < self._vocab_size)
        vocabulary = make_vocabulary(tokenizer.token_bytes[: self._vocab_size], ends)
        return ConstraintLoader(vocabulary, self._cache_bytes)
