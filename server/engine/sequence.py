"""The nouns of the engine: one sequence, and one slice of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plait.decoders.protocol import Decoder, Proposal
from plait.server.pool.messages import GenerateRequest, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting text of a request.

    tokens = prompt + emitted; the first num_cached of them have keys and values in `blocks`.
    """

    request: GenerateRequest
    index: int  # 0..n-1 within the request
    decoder: Decoder[Any]
    state: Any  # the decoder's own
    root: bytes  # start of the prefix-cache hash chain
    leader: Sequence | None = None  # the sequence whose prompt cache this one may share
    tokens: list[int] = field(default_factory=list)
    num_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    is_running: bool = False
    is_done: bool = False
    is_started: bool = False
    forwards: int = 0  # forward passes that gave logits
    steps: list[int] = field(default_factory=list)  # for each emitted token, its forward pass
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Committed tokens whose keys and values aren't cached yet."""
        return len(self.tokens) - self.num_cached

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Only the first sequence of a request reports on the prompt."""
        return self.index == 0 and self.request.prompt_logprobs is not None

    @property
    def order(self) -> tuple[int, float, str, int]:
        """Sort key of queues: priority, arrival, request, index."""
        request = self.request
        return (request.priority, request.arrived, request.request_id, self.index)


@dataclass(frozen=True, slots=True)
class Slice:
    """What one sequence feeds in one step: pending tokens, then what its decoder proposed."""

    sequence: Sequence
    num_pending: int
    proposal: Proposal | None  # None: a chunk that leaves tokens pending, so no logits are due

    @property
    def num_rows(self) -> int:
        """Rows in the forward pass."""
        return self.num_pending + (len(self.proposal.token_ids) if self.proposal else 0)
