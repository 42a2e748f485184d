"""Text to token ids and back. No torch: the front end and the grammar compiler use it too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import tokenizers

from plait.server.errors import BadRequest
from plait.server.models.catalog import BadModel, ModelFiles, naming
from plait.server.models.hf.generation import SamplingDefaults
from plait.server.prompt.gguf_tokenizer import read_gguf_tokenizer
from plait.server.prompt.hf_tokenizer import read_hf_tokenizer
from plait.server.prompt.token_count import token_count_bound
from plait.server.prompt.tokenizer_data import TokenizerData

# A quoted special token is QUOTE and one character of plane 16; Unicode assigns neither.
QUOTE = "\ufdd0"
FIRST_LETTER = 0x100000


def load_tokenizer(files: ModelFiles, *, sampling: bool = False) -> Tokenizer:
    """Return the tokenizer of a model.

    Args:
        files: The model's files.
        sampling: Also read the sampling defaults that the model recommends.
    Raises:
        BadModel: the files are damaged or of an unknown kind.
    """
    with naming(files.path):
        read = read_gguf_tokenizer if files.kind == "gguf" else read_hf_tokenizer
        return Tokenizer(read(files, sampling=sampling))


class Tokenizer:
    """One model's tokenizer. Immutable and safe to share between threads.

    Laws: encode(text) has no special token except the model's own prefix; decode(encode(text)) is
    text, unless the tokenizer normalizes; encode(quote(text), special=True) has no special token.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    special_token_ids: frozenset[int]
    token_bytes: Sequence[bytes]  # [vocab_size] each token's bytes in a text; b"" if special
    chat_template: str | None
    named_tokens: Mapping[str, str]  # variables of templates: "bos_token": "<s>", ...
    prefix: tuple[int, ...]  # token ids that a text begins with: bos, or none
    strips_space: bool  # decode removes the space that encode adds in front (SentencePiece)
    sampling: SamplingDefaults  # the model's recommendation

    def __init__(self, vocabulary: TokenizerData) -> None:
        added = vocabulary.backend.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self.vocab_size = vocabulary.size
        self.eos_token_ids = vocabulary.eos_token_ids
        self.bos_token_id = vocabulary.bos_token_id
        self.special_token_ids = frozenset(self._special)
        self.token_bytes = vocabulary.token_bytes
        self.chat_template = vocabulary.chat_template
        self.named_tokens = vocabulary.named_tokens
        self.sampling = vocabulary.sampling
        self.prefix = vocabulary.prefix
        self.strips_space = vocabulary.strips_space
        self._plain = _ignoring_special(vocabulary.backend)
        self._parsing = vocabulary.backend
        self._bound = token_count_bound(vocabulary.backend, vocabulary.token_bytes)
        self._quotes, self._unquoted = self._add_quotes()
        self._quotable = re.compile("|".join(map(re.escape, sorted(self._quotes, reverse=True))))

    def encode(self, text: str, *, special: bool = False, prefix: bool | None = None) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: Any text that UTF-8 can encode.
            special: Parse special tokens that are written in the text (rendered templates).
                Otherwise they are ordinary text, as in a user's prompt.
            prefix: Add the model's prefix (bos); None: unless special.
        Raises:
            BadRequest: the text holds half of a surrogate pair.
        """
        backend = self._parsing if special else self._plain
        try:  # as a batch: for a single text the library holds the GIL
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError as error:  # of the library, for a string that is not Unicode
            raise BadRequest("the text holds a lone surrogate, which is not Unicode") from error
        if special:
            ids = self._unquote(ids)
        wants_prefix = not special if prefix is None else prefix
        return [*self.prefix, *ids] if wants_prefix else ids

    def encode_inside(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text within a longer one: without prefix or added space.

        Args:
            text: Any text that UTF-8 can encode.
            special: As for `encode`.
        Raises:
            BadRequest: the text holds half of a surrogate pair.
        """
        before = self.encode("\n", special=special, prefix=False)
        ids = self.encode(f"\n{text}", special=special, prefix=False)
        if ids[: len(before)] == before:
            return ids[len(before) :]
        return self.encode(text, special=special, prefix=False)

    def min_token_count(self, text: str) -> int:
        """Return a lower bound of the text's token count. Cost: that of encoding to UTF-8."""
        return self._bound.min_token_count(text)

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; with `special`, including special tokens.

        Bytes that are not UTF-8 become U+FFFD. Raises IndexError for ids outside of the vocabulary.
        """
        written = self._special if special else {}
        parts = [written[i].encode() if i in written else self.token_bytes[i] for i in token_ids]
        data = b"".join(parts)
        if self.strips_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def piece(self, token_id: int) -> str:
        """Return a token's string in the vocabulary (`Ġis`, `▁is`); "" if there is none."""
        return self._plain.id_to_token(token_id) or ""

    @cached_property
    def written_bytes(self) -> Sequence[bytes]:
        """[vocab_size] each token's bytes in a text that includes special tokens."""
        return [self.token_name(i) for i in range(self.vocab_size)]

    def token_name(self, token_id: int) -> bytes:
        """Return the bytes to display for a token: its own, or a special token's name.

        Padding rows of the model's output have none.
        """
        name = self._special.get(token_id)
        if name is not None:
            return name.encode()
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""

    def quote(self, text: str) -> str:
        """Return the text in a form in which encode(special=True) finds no special token.

        Users' strings are quoted before a template puts them between its own special tokens, so
        that nobody can forge another role's turn. A quoted token splits the text: what follows is
        tokenized separately, in older SentencePiece vocabularies with a space in front.
        """
        if not any(special in text for special in self._quotes):  # the usual case, 10 times faster
            return text
        return self._quotable.sub(lambda found: self._quotes[found[0]], text)

    def _add_quotes(self) -> tuple[dict[str, str], dict[int, list[int]]]:
        """Add a quoted form of every special token to the parsing backend, as an added token.

        Returns the quoted form of each special token's text, and the plain token ids that each
        quoted form's id stands for.
        """
        texts = [*self._special.values(), QUOTE]
        quotes = {text: f"{QUOTE}{chr(FIRST_LETTER + i)}" for i, text in enumerate(texts)}
        self._parsing.add_special_tokens(
            [tokenizers.AddedToken(quoted, normalized=False) for quoted in quotes.values()]
        )
        unquoted = {
            cast(int, self._parsing.token_to_id(quoted)): self.encode_inside(text)
            for text, quoted in quotes.items()
        }
        for ids in unquoted.values():
            if not self.special_token_ids.isdisjoint(ids):
                raise BadModel(f"plain text can yield a special token: {self.decode(ids)!r}")
        return quotes, unquoted

    def _unquote(self, ids: list[int]) -> list[int]:
        if self._unquoted.keys().isdisjoint(ids):
            return ids
        return [plain for i in ids for plain in self._unquoted.get(i, (i,))]


def _ignoring_special(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer of the same model that treats special tokens as plain text."""
    plain = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    added = backend.get_added_tokens_decoder()
    plain.add_tokens([added[i] for i in sorted(added)])
    plain.encode_special_tokens = True
    moved = [token.content for i, token in added.items() if plain.token_to_id(token.content) != i]
    if moved:
        raise BadModel(f"the ids of the added tokens leave gaps: {', '.join(moved[:4])}")
    return plain
