"""What sampling knows of one sequence: its parameters and the text so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plait.decoders.sampling.counts import TokenCounts
from plait.decoders.sampling.params import GREEDY_BELOW, SamplingParams
from plait.kernels import noise


class SamplingState:
    """One sequence of a request. Prompt and parameters are shared with its forks.

    The noise of a draw is keyed (params.seed, sequence_index, position), so a state that has seen
    the same tokens draws the same next token, however it came to be.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        stop_token_ids: Collection[int] = frozenset(),
        sequence_index: int = 0,
    ) -> None:
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.stop_token_ids = frozenset(stop_token_ids)
        self.sequence_index = sequence_index
        self.output: list[int] = []
        self.greedy = params.temperature < GREEDY_BELOW
        self.truncates = not self.greedy and (
            params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
        )
        self._allowed = frozenset(params.allowed_token_ids)
        self._always_edits = bool(params.allowed_token_ids or params.bad_words or params.logit_bias)
        self.counts = _counts(params, prompt_token_ids)
        self._num_ahead = 0

    @property
    def position(self) -> int:
        """The absolute index of the token drawn next: prompt length plus outputs so far."""
        return len(self.prompt_token_ids) + len(self.output) + self._num_ahead

    @property
    def key(self) -> tuple[int, int, int]:
        """The noise key of the next draw; a row of a keys tensor."""
        return noise.key(self.params.seed, self.sequence_index, self.position)

    @property
    def edits(self) -> bool:
        """Whether bans, bias or penalties may change the next row."""
        return self._always_edits or self._too_short or bool(self.counts)

    def append(self, token_id: int) -> None:
        """Take note of an emitted token. Cost: O(1)."""
        self.output.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)

    def ahead(self, token_id: int | None) -> SamplingState:
        """Return what would be known of the next draw had this token been emitted.

        Good for draws until the text grows. None: a token that nobody knows yet. Cost: O(1) where
        the law does not look at the text, otherwise that of a fork.
        """
        if token_id is not None and (self.counts is not None or self.params.bad_words):
            twin = self.fork()
            twin.append(token_id)
            return twin
        twin = object.__new__(SamplingState)
        twin.__dict__.update(self.__dict__)
        twin._num_ahead += 1
        return twin

    def fork(self, sequence_index: int | None = None) -> SamplingState:
        """Return an independent copy, with noise of its own if given another index.

        Cost: O(output), and with penalties O(distinct tokens).
        """
        twin = object.__new__(SamplingState)
        twin.__dict__.update(self.__dict__)
        twin.output = self.output.copy()
        twin.counts = self.counts.copy() if self.counts is not None else None
        if sequence_index is not None:
            twin.sequence_index = sequence_index
        return twin

    def bans(self) -> set[int]:
        """Return the tokens that bad_words and min_tokens forbid next."""
        banned = set(self.stop_token_ids) if self._too_short else set()
        for word in self.params.bad_words:
            if self._ends_with(word[:-1]):
                banned.add(word[-1])
        return banned

    def forbids(self, token_id: int) -> bool:
        """Tell whether allowed_token_ids, bad_words or min_tokens rule out this token next."""
        if self._allowed and token_id not in self._allowed:
            return True
        return bool(self.params.bad_words or self._too_short) and token_id in self.bans()

    @property
    def _too_short(self) -> bool:
        return len(self.output) + self._num_ahead < self.params.min_tokens

    def _ends_with(self, tail: Sequence[int]) -> bool:
        """Tell whether the text, prompt included, ends with these tokens."""
        missing = len(tail) - len(self.output)
        if missing <= 0:
            return self.output[len(self.output) - len(tail) :] == list(tail)
        if missing > len(self.prompt_token_ids):
            return False
        return [*self.prompt_token_ids[-missing:], *self.output] == list(tail)


def _counts(params: SamplingParams, prompt: Sequence[int]) -> TokenCounts | None:
    """Return the counts that the penalties in use need, if any."""
    if params.repetition_penalty != 1.0:
        return TokenCounts(prompt)
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        return TokenCounts()
    return None
