"""The text of one sequence, and the key of its noise.

A `Text` is the only copy of a sequence's tokens. The engine owns it; the decoder that runs the
sequence appends what it emits, in `accept`; samplers, drafters and constraints read it. What they
remember besides is derived from it and can be made again. No torch at import time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import overload

WORD = 2**32


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Which noise the draws of one sequence use, beside the token's position.

    The n sequences that a request starts with have the streams 0..n-1. Law: a fork shares its noise
    with no other sequence of the request (up to collisions of a 64-bit hash).
    """

    seed: int  # of the request: unsigned 64 bits
    stream: int = 0  # of the sequence: unsigned 64 bits

    def fork(self, child: int) -> NoiseKey:
        """Return the key of a child of this sequence, which numbers its children.

        The stream is a hash of the parent's stream and the child's number; its high word is not 0,
        so it is none of those that a request starts with.
        """
        words = self.stream.to_bytes(8, "little") + child.to_bytes(8, "little")
        stream = int.from_bytes(blake2b(words, digest_size=8).digest(), "little")
        return NoiseKey(self.seed, stream if stream >= WORD else stream + WORD)


class Text(Sequence[int]):
    """The tokens of one sequence: its prompt, then its output.

    Reading it is reading `token_ids`, which is a list: loops that are hot use that.
    """

    __slots__ = ("noise", "prompt", "prompt_length", "token_ids")

    def __init__(
        self, prompt: Sequence[int], noise: NoiseKey | None = None, output: Iterable[int] = ()
    ) -> None:
        """Begin with a prompt; the sequences of a request share one prompt object.

        Args:
            prompt: token ids, which nobody changes any more.
            noise: of the draws; None: seed 0, stream 0.
            output: tokens that stand behind the prompt already.
        """
        self.prompt = prompt
        self.prompt_length = len(prompt)
        self.noise = noise or NoiseKey(0)
        self.token_ids = [*prompt, *output]  # not to be modified

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.token_ids[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self.token_ids)

    @property
    def num_output(self) -> int:
        """Tokens behind the prompt."""
        return len(self.token_ids) - self.prompt_length

    @property
    def output(self) -> list[int]:
        """A copy of the tokens behind the prompt. Cost: O(output)."""
        return self.token_ids[self.prompt_length :]

    def append(self, token_id: int) -> None:
        """Add one token of output."""
        self.token_ids.append(token_id)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens of output."""
        self.token_ids.extend(token_ids)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens; the prompt stays whole."""
        assert self.prompt_length <= length <= len(self), "a text is cut within its output"
        del self.token_ids[length:]

    def fork(self, child: int) -> Text:
        """Return an independent copy with noise of its own; `child` numbers the copies."""
        return self.with_noise(self.noise.fork(child))

    def with_noise(self, noise: NoiseKey) -> Text:
        """Return an independent copy with this noise. Cost: O(tokens)."""
        twin = object.__new__(Text)
        twin.prompt, twin.prompt_length = self.prompt, self.prompt_length
        twin.noise, twin.token_ids = noise, self.token_ids.copy()
        return twin

    def num_shared(self, other: Text, known: int = 0) -> int:
        """Return the length of the longest common beginning, of which `known` tokens are known.

        Cost: O(tokens behind those), in C.
        """
        one, two = self.token_ids, other.token_ids
        low, high = known, min(len(one), len(two))
        if one[low:high] == two[low:high]:
            return high
        while high - low > 1:  # the first `low` tokens agree, the first `high` do not
            middle = (low + high) // 2
            if one[low:middle] == two[low:middle]:
                low = middle
            else:
                high = middle
        return low
