"""What sampling derives from one sequence: token counts, bans, the noise key of the next draw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy

from plait.decoders.contract.text import Text
from plait.decoders.sampling.counts import TokenCounts
from plait.decoders.sampling.params import GREEDY_BELOW, SamplingParams
from plait.kernels import noise


class SamplingState:
    """What a sampler needs to know of one sequence; derived from the text, which it only reads.

    The noise of a draw is keyed (seed, stream, position), so a state that has seen the same text
    draws the same next token, however it came to be.
    """

    def __init__(
        self, params: SamplingParams, text: Text, stop_token_ids: Collection[int] = frozenset()
    ) -> None:
        """Begin at the end of a text. Cost: O(text) with penalties, otherwise O(1)."""
        self.params = params
        self.text = text
        self.stop_token_ids = frozenset(stop_token_ids)
        self.greedy = params.temperature < GREEDY_BELOW
        self.truncates = not self.greedy and (
            params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
        )
        self._allowed = frozenset(params.allowed_token_ids)
        self._always_edits = bool(params.allowed_token_ids or params.bad_words or params.logit_bias)
        self.counts = _counts(params, text)
        self.is_plain = not (  # its rows are drawn as they are, and nothing is told of them
            self.truncates
            or self._always_edits
            or self.counts is not None
            or params.min_tokens
            or params.logprobs is not None
        )
        self.log_factors: Mapping[int, float] = {}  # by which a search scales the next draw
        self._ahead: tuple[int, ...] = ()  # tokens that are assumed behind the text
        self._num_unknown = 0  # further ones, of which only their number is known

    @property
    def position(self) -> int:
        """The index in the text of the token drawn next."""
        return len(self.text.token_ids) + len(self._ahead) + self._num_unknown

    @property
    def key(self) -> tuple[int, int, int]:
        """The noise key of the next draw; a row of a keys tensor."""
        key = self.text.noise
        return noise.key(key.seed, key.stream, self.position)

    @property
    def draws_plainly(self) -> bool:
        """Whether the next row is drawn as it is, and nothing is told of it."""
        return self.is_plain and not self.log_factors

    @property
    def edits(self) -> bool:
        """Whether bans, bias or penalties may change the next row."""
        return self._always_edits or self._too_short or bool(self.counts)

    def observe(self, token_id: int) -> None:
        """Take note of a token that has just been appended to the text. Cost: O(1)."""
        self.log_factors = {}
        if self.counts is not None:
            self.counts.add(token_id)

    def ahead(self, token_id: int | None) -> SamplingState:
        """Return what would be known of the next draw if this token followed.

        Good for draws until the text changes. None: a token that nobody knows yet. Cost: O(1) where
        no parameter looks at the text; with penalties O(distinct tokens).
        """
        twin = copy(self)
        twin.log_factors = {}
        if token_id is None or not (self.counts is not None or self.params.bad_words):
            twin._num_unknown += 1
            return twin
        twin._ahead = (*self._ahead, token_id)
        if self.counts is not None:
            twin.counts = self.counts.copy()
            twin.counts.add(token_id)
        return twin

    def fork(self, text: Text) -> SamplingState:
        """Return the state of another text, which begins as this one's does.

        Cost: O(1), and with penalties O(distinct tokens) where the other text goes on from this
        one's end, O(text) where it does not.
        """
        twin = copy(self)
        twin.text, twin.log_factors = text, {}
        if self.counts is not None:
            shared, length = text.num_shared(self.text), len(self.text)
            twin.counts = self.counts.copy() if shared == length else _counts(self.params, text)
            for token_id in text.token_ids[length:] if shared == length else ():
                twin.observe(token_id)
        return twin

    def truncate(self) -> None:
        """Take note that the text has been cut. Cost: with penalties O(text), otherwise O(1)."""
        self.counts, self.log_factors = _counts(self.params, self.text), {}

    def bans(self) -> set[int]:
        """Return the tokens that bad_words and min_tokens forbid next."""
        banned = set(self.stop_token_ids) if self._too_short else set()
        for word in self.params.bad_words:
            if self._ends_with(word[:-1]):
                banned.add(word[-1])
        return banned

    def is_banned(self, token_id: int) -> bool:
        """Tell whether allowed_token_ids, bad_words or min_tokens rule out this token next."""
        if self._allowed and token_id not in self._allowed:
            return True
        return bool(self.params.bad_words or self._too_short) and token_id in self.bans()

    @property
    def _too_short(self) -> bool:
        if not self.params.min_tokens:
            return False
        return self.position - self.text.prompt_length < self.params.min_tokens

    def _ends_with(self, tail: Sequence[int]) -> bool:
        """Tell whether the text and what is assumed behind it end with these tokens."""
        if not tail:
            return True
        missing = len(tail) - len(self._ahead)
        if missing <= 0:
            return self._ahead[-len(tail) :] == tuple(tail)
        return (*self.text.token_ids[-missing:], *self._ahead) == tuple(tail)


def _counts(params: SamplingParams, text: Text) -> TokenCounts | None:
    """Return the counts that the penalties in use need, if any."""
    if params.repetition_penalty != 1.0:
        return TokenCounts(text.prompt, text.output)
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        return TokenCounts((), text.output)
    return None
