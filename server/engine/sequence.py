"""One sequence of the engine, and what it feeds in one step."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field
from typing import Any

from plait.decoders.contract.decoder import (
    Alternative,
    AttentionMode,
    Decoder,
    FinishReason,
    Proposal,
    TokenLogprobs,
)
from plait.decoders.contract.text import Text
from plait.server.engine.kv.block_table import BlockTable
from plait.server.wire.messages import GenerateRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting text of a request.

    The first num_computed_tokens tokens of the text have keys and values in the blocks of
    `block_table`. The decoder appends what it emits.
    """

    request: GenerateRequest
    text: Text
    index: int  # number of the member in its group; under a search it may exceed n - 1
    decoder: Decoder[Any]
    state: Any  # the decoder's own
    block_table: BlockTable
    attention_block_size: int = 1  # Decoder.attention_block_size
    prompt_leader: Sequence | None = None  # the sequence whose prompt cache this one may share
    num_computed_tokens: int = 0
    is_running: bool = False
    is_done: bool = False
    is_started: bool = False
    is_held: bool = False  # waits for the other members of its group, to be decided on together
    is_parked: bool = False  # its search has put it aside, without blocks
    is_on_hold: bool = False  # its search has put it aside, with its blocks
    num_scored: int = 0  # tokens of output that the request's scorers have seen
    last_turn: int = 0  # of a search's member: the step that it last took part in
    num_context_tokens: int = 0  # block 0: rows that its decoder last fed in place
    forwards: int = 0  # forward passes that gave logits
    steps: list[int] = field(default_factory=list)  # for each emitted token, its forward pass
    finish: FinishReason | None = None  # why the text is complete; of members of a search only
    stop_token: int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of members of a search only
    alternatives: Sequences[Alternative] = ()  # to the token drawn last, if a search asks for them
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Committed tokens whose keys and values aren't cached yet."""
        return len(self.text) - self.num_computed_tokens

    @property
    def num_prefill_tokens(self) -> int:
        """Pending tokens that the engine feeds by itself: whole blocks."""
        if self.attention_block_size == 0:
            return 0
        return self.whole_blocks(len(self.text)) - self.num_computed_tokens

    @property
    def num_cacheable_tokens(self) -> int:
        """Tokens that the prefix cache may give: whole blocks, and one token is left to read."""
        return self.whole_blocks(len(self.text) - 1)

    @property
    def num_shared_prompt_tokens(self) -> int:
        """Tokens of the prompt that siblings share."""
        return self.whole_blocks(self.prompt_length - 1)

    @property
    def num_canvas_tokens(self) -> int:
        """Rows that its decoder can't do without, by estimate; plain decoding needs none."""
        if self.attention_block_size == 0:
            return self.num_context_tokens or self.prompt_length + self.request.max_tokens
        if self.attention_block_size > 1:
            return self.attention_block_size
        extras = self.request.extras
        return extras.num_continuation_rows if extras.continuations else 0

    @property
    def num_reserved_tokens(self) -> int:
        """One past the positions that the next steps write, by estimate and without drafts."""
        if self.attention_block_size == 0:
            return self.prompt_length + self.request.max_tokens
        own = max(self.attention_block_size, self.num_canvas_tokens)
        return self.whole_blocks(len(self.text)) + own

    @property
    def is_runnable(self) -> bool:
        """Whether it takes part in steps, as soon as there is a place for it."""
        is_over = self.is_done or self.finish is not None
        return not (is_over or self.is_held or self.is_parked)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def reports_prompt_logprobs(self) -> bool:
        """Only the first sequence of a request reports on the prompt."""
        return self.index == 0 and self.request.prompt_logprobs is not None

    @property
    def order(self) -> tuple[int, float, str, int]:
        """Sort key of queues: priority, arrival, request, index."""
        request = self.request
        return (request.priority, request.arrived, request.request_id, self.index)

    def whole_blocks(self, length: int) -> int:
        """Return how many of `length` tokens fill whole attention blocks."""
        size = self.attention_block_size
        return length // size * size if size else 0


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """What one sequence feeds in one step: pending tokens, then what its decoder proposed."""

    sequence: Sequence
    num_pending: int
    proposal: Proposal | None  # None: a chunk that leaves tokens pending, so no logits are due

    @property
    def num_rows(self) -> int:
        """Rows in the forward pass."""
        return self.num_pending + self.num_proposed_tokens

    @property
    def num_proposed_tokens(self) -> int:
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
        return self.start + self.num_proposed_tokens
