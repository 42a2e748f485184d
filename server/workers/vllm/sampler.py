"""The decoder in the places of vLLM's samplers and drafter.

vLLM schedules, keeps the KV cache and runs the forward pass; which tokens follow, and which are
drafted, our decoder decides, by the same laws as in the native engine. Of vLLM's model runner (V1)
this uses what `RunnerLike` names, and nothing else.

Law: the tokens are those of the native engine in the same numerics, with drafts and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.decoder import DraftBudget, Forward, Outcome

NO_TOKEN = -1  # how vLLM marks a place behind the last token


class BatchLike(Protocol):
    """vLLM's InputBatch."""

    @property
    def req_ids(self) -> Sequence[str]:
        """The requests of the step, in the order of their rows."""


class MaskLike(Protocol):
    """One of vLLM's buffers that are on both sides of a device."""

    @property
    def np(self) -> NDArray[np.bool_]:
        """The host's side."""


class RunnerLike(Protocol):
    """vLLM's GPUModelRunner, on whatever device."""

    sampler: Any
    rejection_sampler: Any

    @property
    def input_batch(self) -> BatchLike:
        """The requests that take part in the step."""

    @property
    def discard_request_mask(self) -> MaskLike:
        """Requests whose prompts the step does not read to their end."""


class DraftsLike(Protocol):
    """vLLM's SpecDecodeMetadata."""

    @property
    def draft_token_ids(self) -> Tensor:
        """[drafts] of all requests."""

    @property
    def num_draft_tokens(self) -> Sequence[int]:
        """Of each request."""

    @property
    def max_spec_len(self) -> int:
        """The largest of these."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What a step has given one sequence."""

    key: str  # vLLM's id of the request
    outcome: Outcome


class StandIn:
    """Takes the places of vLLM's samplers in its model runner."""

    logprobs_mode: ClassVar[str] = "raw_logprobs"  # of prompts; the rest is the decoder's

    def __init__(self, runner: RunnerLike) -> None:
        # vLLM scores prompts with its sampler's help.
        self.compute_logprobs = runner.sampler.compute_logprobs
        self.gather_logprobs = runner.sampler.gather_logprobs
        runner.sampler = self
        runner.rejection_sampler = self.verify

    def verify(
        self, drafts: DraftsLike, draft_probs: object, logits: Tensor, sampling_metadata: object
    ) -> Any:
        """Return vLLM's output of a step with drafts."""
        raise NotImplementedError


class DecoderSampler(StandIn):
    """Decides each step's tokens and drafts; stands where vLLM has its samplers and its drafter."""

    def __init__(
        self,
        decoder: AutoregressiveDecoder,
        runner: RunnerLike,
        make_output: Callable[[Tensor], Any],
        max_draft_tokens: int = 0,
        share: Callable[[object], None] | None = None,
    ) -> None:
        """Take the places in the runner.

        Args:
            decoder: of all sequences.
            runner: vLLM's.
            make_output: returns vLLM's SamplerOutput for token ids [requests, width].
            max_draft_tokens: that vLLM has room for, for each request and step; 0: no drafts.
            share: takes what is decided, for a `FollowerSampler`; None: there is none.
        """
        self.states: dict[str, AutoregressiveState] = {}  # by vLLM's ids; those that still run
        self.decoder = decoder
        self._runner = runner
        self._make_output = make_output
        self._max_draft_tokens = max_draft_tokens
        self._share = share
        self._decided: list[Decided] = []
        self._num_rows = 0
        super().__init__(runner)

    def take(self) -> tuple[list[Decided], int]:
        """Return what was decided since the last call, and how many rows were looked at."""
        taken = self._decided, self._num_rows
        self._decided, self._num_rows = [], 0
        return taken

    def __call__(self, logits: Tensor, sampling_metadata: object, **_: object) -> Any:
        """Decide a step without drafts: one row for each request."""
        return self._decide(logits, [()] * logits.shape[0], width=1)

    def verify(
        self, drafts: DraftsLike, draft_probs: object, logits: Tensor, sampling_metadata: object
    ) -> Any:
        """Decide a step with drafts: a row for each drafted token, and one behind them."""
        tokens = iter(drafts.draft_token_ids.tolist())
        fed = [[*islice(tokens, count)] for count in drafts.num_draft_tokens]
        return self._decide(logits, fed, width=drafts.max_spec_len + 1)

    def propose(self, sampled: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return a draft for each request of the step that has just been decided.

        sampled: the tokens of each; none where the step has not read a prompt to its end.
        """
        ids = self._runner.input_batch.req_ids
        ended = {each.key for each in self._decided if _is_last(each.outcome)}
        going = (i for i, tokens in enumerate(sampled) if tokens and ids[i] in self.states)
        live = [i for i in going if ids[i] not in ended]
        drafts: list[list[int]] = [[] for _ in sampled]
        if live:
            states = [self.states[ids[i]] for i in live]
            budget = DraftBudget(drafts=self._max_draft_tokens * len(live), fed=len(live))
            for i, made in zip(live, self.decoder.propose(states, budget), strict=True):
                if made.parents is None:  # vLLM feeds chains
                    drafts[i] = list(made.token_ids[: self._max_draft_tokens])
        if self._share is not None:
            self._share(drafts)
        return drafts

    def _decide(self, logits: Tensor, fed: Sequence[Sequence[int]], *, width: int) -> Any:
        """Return vLLM's output of a step.

        Args:
            logits: one row for each request and one for each draft token behind it, packed.
            fed: the draft tokens of each request. The scheduler may have had no room for all that
                was proposed, and it fills the step of a short prompt up with tokens that are none.
            width: tokens that the output has room for.
        """
        ids = self._runner.input_batch.req_ids
        unread = self._runner.discard_request_mask.np
        tokens = torch.full((len(fed), width), NO_TOKEN, dtype=torch.int32)
        tokens[:, 0] = 0  # vLLM drops it where a prompt was not read to its end
        live, states, rows, offsets, first = list[int](), list[Any](), list[int](), [0], 0
        for i, draft in enumerate(fed):
            if not unread[i] and ids[i] in self.states:
                state = self.states[ids[i]]
                drafting = state.speculation
                matching = 0 if drafting is None else drafting.match_fed(draft)
                rows += range(first, first + 1 + matching)
                live.append(i)
                states.append(state)
                offsets.append(len(rows))
            first += 1 + len(draft)
        if live:
            self._num_rows += len(rows)
            outcomes = self.decoder.accept(states, Forward(_select(logits, rows), offsets))
            for i, outcome in zip(live, outcomes, strict=True):
                self._decided.append(Decided(ids[i], outcome))
                # vLLM must be told of a token even where there is none, as behind a stop token.
                found = list(outcome.emit) or [outcome.stop_token or 0]
                tokens[i, : len(found)] = torch.tensor(found, dtype=torch.int32)
        if self._share is not None:
            self._share(tokens.numpy())
        return self._make_output(tokens.to(logits.device))


class FollowerSampler(StandIn):
    """Stands where vLLM has its samplers and its drafter in the process of another device.

    That device has computed the same logits; the `DecoderSampler` tells it what follows.
    """

    def __init__(
        self,
        runner: RunnerLike,
        receive: Callable[[], Any],
        make_output: Callable[[Tensor], Any],
    ) -> None:
        """Take the places in the runner.

        Args:
            runner: vLLM's, in this process.
            receive: waits for what the other sampler has shared, and returns it.
            make_output: as in DecoderSampler.
        """
        self._receive = receive
        self._make_output = make_output
        super().__init__(runner)

    def __call__(self, logits: Tensor, sampling_metadata: object, **_: object) -> Any:
        """Return the tokens of a step without drafts."""
        return self._make_output(torch.from_numpy(self._receive()).to(logits.device))

    def verify(
        self, drafts: DraftsLike, draft_probs: object, logits: Tensor, sampling_metadata: object
    ) -> Any:
        """Return the tokens of a step with drafts."""
        return self(logits, sampling_metadata)

    def propose(self, sampled: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the drafts for the next step."""
        drafts: list[list[int]] = self._receive()
        return drafts


def _is_last(outcome: Outcome) -> bool:
    return outcome.finish is not None or bool(outcome.fault)


def _select(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some rows, in rising order, in single precision; a view if that is all."""
    own = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
    return own.float()
