"""Loads compiled constraints in the worker, without slowing its start."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from plait.decoders.constrained.spec import AllowedTokens, ConstraintError, NoDistinctText
from plait.kernels.grammar import UNREACHABLE, TooLarge
from plait.server.errors import BadRequest
from plait.server.memory import return_freed_memory
from plait.server.prompt.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from plait.decoders.constrained.load import ConstraintLoader
    from plait.decoders.contract.constraint import Constraint
    from plait.decoders.contract.scorer import CheckForm
    from plait.server.models.catalog import ModelFiles
    from plait.server.wire.messages import CompiledConstraint


def _unspellable(compiled: CompiledConstraint) -> BadRequest:
    """Return the error for tokens that the form can't be written with."""
    param = "allowed_token_ids" if compiled.allowed_token_ids else "bad_words"
    return BadRequest(
        f"{param} and the form of the answer can't both hold: none that the form allows is sure to "
        "be spelled with the tokens that are left. Leave those of single characters, too.",
        param=param,
    )


class LazyForms:
    """Loads forms for scorers, whose texts are read byte by byte whatever their tokens were."""

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes

    def __call__(self, compiled: CompiledConstraint) -> CheckForm:
        """Return a function of a text: how much of it is right, and whether it is whole.

        Raises:
            BadRequest: the form is too large, or no text of it was found.
        """
        try:
            origin = self._loader.load(compiled.key, compiled.table)
        except (ConstraintError, TooLarge) as error:
            raise BadRequest(
                f"The form can't be judged: {error}", param="decoding.scorer"
            ) from error

        def check(text: bytes) -> tuple[int, bool]:
            walker, count = origin.fork(), 0
            while count < len(text) and walker.accept_token(text[count]):
                count += 1
            return count, count == len(text) and walker.is_accepting()

        return check

    @cached_property
    def _loader(self) -> ConstraintLoader:
        from plait.decoders.constrained.load import ConstraintLoader  # noqa: PLC0415, as below
        from plait.decoders.constrained.vocabulary import make_vocabulary  # noqa: PLC0415

        vocabulary = make_vocabulary((bytes([i]) for i in range(256)), ())
        return ConstraintLoader(vocabulary, self._cache_bytes)


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
        """Return a fresh constraint for one request, behind its prefill.

        Raises:
            BadRequest: the prefill begins no text of the form, or the tokens that the request
                leaves can't spell one.
        """
        tokens = AllowedTokens(
            frozenset(compiled.allowed_token_ids), frozenset(compiled.banned_token_ids)
        )
        try:
            constraint = self._loader.load(compiled.key, compiled.table, tokens)
        except NoDistinctText as error:
            raise BadRequest(
                f"The form of the answer: {error}.", param="response_format"
            ) from error
        except (ConstraintError, TooLarge) as error:
            raise _unspellable(compiled) from error
        if not constraint.accept_text(compiled.prefill.encode()):
            raise BadRequest(
                "The last message does not begin a text that the asked form allows, so it can't be "
                "continued to one: change the message or the form.",
                param="messages",
            )
        if constraint.min_tokens() >= UNREACHABLE:
            raise _unspellable(compiled)
        return constraint

    def prepare(self) -> None:
        """Do now what the first call would do."""
        _ = self._loader
        return_freed_memory()  # of the tokenizer, whose tokens alone are wanted

    @cached_property
    def _loader(self) -> ConstraintLoader:
        from plait.decoders.constrained.load import ConstraintLoader  # noqa: PLC0415, see above
        from plait.decoders.constrained.vocabulary import make_vocabulary  # noqa: PLC0415

        tokenizer = load_tokenizer(self._files)
        ends = (i for i in tokenizer.eos_token_ids if i < self._vocab_size)
        vocabulary = make_vocabulary(tokenizer.token_bytes[: self._vocab_size], ends)
        return ConstraintLoader(vocabulary, self._cache_bytes)
