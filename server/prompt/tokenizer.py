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

# A quoted special token is QUOTE and one letter of plane 16, both free for private agreement.
QUOTE = "\ufdd0"
FIRST_LETTER = 0x100000


def load_tokenizer(files: ModelFiles, *, sampling: bool = False) -> Tokenizer:
    """Return the tokenizer of a model.

    Args:
        files: The model's.
        sampling: Read the sampling that its makers recommend, too.
    Raises:
        BadModel: the files are damaged, or of a kind that is not known.
    """
    with naming(files.path):
        read = read_gguf_tokenizer if files.kind == "gguf" else read_hf_tokenizer
        return Tokenizer(read(files, sampling=sampling))


class Tokenizer:
    """One model's tokenizer. Immutable and safe to share between threads.

    Laws: encode(text) never holds a special token but the model's own prefix; decode(encode(text))
    is text wherever the vocabulary normalises nothing; encode(quote(text), special=True) holds no
    special token.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    special_token_ids: frozenset[int]
    token_bytes: Sequence[bytes]  # [vocab_size] what each token adds to the text; b"" if special
    chat_template: str | None
    named_tokens: Mapping[str, str]  # what templates may write: "bos_token": "<s>", ...
    prefix: tuple[int, ...]  # what the model wants in front of a text: bos, or nothing
    strips_space: bool  # decode drops the space that encode puts in front (SentencePiece)
    sampling: SamplingDefaults  # what the model's makers recommend

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
            text: Any text that UTF-8 can write.
            special: Parse the special tokens written in the text (rendered templates). Otherwise
                they are text like any other, as a user's prompt must be.
            prefix: Put in front what the model wants there (bos); None: unless special.
        Raises:
            BadRequest: the text holds half of a surrogate pair.
        """
        backend = self._parsing if special else self._plain
        try:  # in a batch, because for one the library keeps the interpreter from all other threads
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError as error:  # what the library makes of a string that is not Unicode
            raise BadRequest("the text holds a lone surrogate, which is not Unicode") from error
        if special:
            ids = self._unquote(ids)
        wants_prefix = not special if prefix is None else prefix
        return [*self.prefix, *ids] if wants_prefix else ids

    def encode_inside(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of text within a longer one: no prefix, no space of its own.

        Args:
            text: Any text that UTF-8 can write.
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
        """Return a number of tokens that the text has at least. Cost: that of encoding to UTF-8."""
        return self._bound.min_token_count(text)

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; with `special`, special tokens are written out.

        Bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary are an IndexError.
        """
        written = self._special if special else {}
        parts = [written[i].encode() if i in written else self.token_bytes[i] for i in token_ids]
        data = b"".join(parts)
        if self.strips_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def piece(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it (`Ġis`, `▁is`); "" where it has none."""
        return self._plain.id_to_token(token_id) or ""

    @cached_property
    def written_bytes(self) -> Sequence[bytes]:
        """What each token adds to a text in which special tokens are written out."""
        return [self.token_name(i) for i in range(self.vocab_size)]

    def token_name(self, token_id: int) -> bytes:
        """Return the bytes to show for a token: its own, or a special token's name.

        A row of the model's output that the tokenizer knows nothing of has none.
        """
        name = self._special.get(token_id)
        if name is not None:
            return name.encode()
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""

    def quote(self, text: str) -> str:
        """Return the text so that encode(special=True) reads no special token out of it.

        Strings from outside are quoted before a template puts them between its own special
        tokens, so that nobody can write another role's turn. The text is cut there: what follows
        is encoded by itself, in older SentencePiece vocabularies with a space in front.
        """
        if not any(special in text for special in self._quotes):  # as a rule, and ten times faster
            return text
        return self._quotable.sub(lambda found: self._quotes[found[0]], text)

    def _add_quotes(self) -> tuple[dict[str, str], dict[int, list[int]]]:
        """Give every special token a quoted form, itself an added token of the parsing backend.

        Returns the quoted form of each text, and the ids that a quoted form's id stands for.
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
    """Return a second face of the same model that reads special tokens as plain text."""
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
