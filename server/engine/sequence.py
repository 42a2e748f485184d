"""The nouns of the engine: one sequence, and one slice of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plait.decoders.contract.decoder import AttentionMode, Decoder, Proposal
from plait.server.engine.kv.block_table import BlockTable
from plait.server.wire.messages import GenerateRequest, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting text of a request.

    tokens = prompt + emitted; the first num_computed_tokens of them have keys and values in the
    blocks of `block_table`.
    """

    request: GenerateRequest
    index: int  # 0..n-1 within the request
    decoder: Decoder[Any]
    state: Any  # the decoder's own
    block_table: BlockTable
    block: int = 1  # how committed tokens enter the cache (Decoder.block)
    leader: Sequence | None = None  # the sequence whose prompt cache this one may share
    tokens: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    is_running: bool = False
    is_done: bool = False
    is_started: bool = False
    num_refreshed: int = 0  # block 0: rows that its decoder last fed in place
    forwards: int = 0  # forward passes that gave logits
    steps: list[int] = field(default_factory=list)  # for each emitted token, its forward pass
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Committed tokens whose keys and values aren't cached yet."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_readable(self) -> int:
        """Pending tokens that the engine feeds by itself: whole blocks."""
        return self._whole_blocks(len(self.tokens)) - self.num_computed_tokens if self.block else 0

    @property
    def num_reusable(self) -> int:
        """Tokens that the prefix cache may give: whole blocks, and one token is left to read."""
        return self._whole_blocks(len(self.tokens) - 1)

    @property
    def num_shareable(self) -> int:
        """Tokens of the prompt that siblings share."""
        return self._whole_blocks(self.prompt_length - 1)

    @property
    def num_canvas_rows(self) -> int:
        """Rows that its decoder can't do without, by estimate; plain decoding needs none."""
        if self.block == 0:
            return self.num_refreshed or self.prompt_length + self.request.max_tokens
        return self.block if self.block > 1 else 0

    @property
    def next_stop(self) -> int:
        """One past the positions that the next steps write, by estimate and without drafts."""
        if self.block == 0:
            return self.prompt_length + self.request.max_tokens
        return self._whole_blocks(len(self.tokens)) + self.block

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

    def _whole_blocks(self, length: int) -> int:
        return length // self.block * self.block if self.block else 0


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """What one sequence feeds in one step: pending tokens, then what its decoder proposed."""

    sequence: Sequence
    num_pending: int
    proposal: Proposal | None  # None: a chunk that leaves tokens pending, so no logits are due

    @property
    def num_rows(self) -> int:
        """Rows in the forward pass."""
        return self.num_pending + self.num_proposed

    @property
    def num_proposed(self) -> int:
        """Rows of the proposal."""
        return len(self.proposal.token_ids) if self.proposal else 0

    @property
    def start(self) -> int:
        """Position where the proposed rows are stored, and tokens in front of them."""
        return self.sequence.num_computed_tokens + self.num_pending

    @property
    def stop(self) -> int:
        """One past the last position that is written or read."""
        if self.proposal is not None and self.proposal.attend is AttentionMode.CONTEXT:
            return self.proposal.length
        return self.start + self.num_proposed
