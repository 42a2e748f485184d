"""What the worker's engine needs of vLLM's. No vLLM is imported here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class CoreStep:
    """What vLLM tells of one of its steps, by its ids of the requests."""

    begun: Mapping[str, int]  # left the queue in this step: prompt tokens found in its cache
    prompt_logprobs: Mapping[str, list[TokenLogprobs | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreStats:
    """vLLM's gauges, and its counter of preemptions."""

    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    num_preemptions: int


class EngineCoreLike(Protocol):
    """vLLM's engine: it schedules sequences, keeps their KV cache and runs the forward pass."""

    def add(self, sequence: Sequence) -> str:
        """Queue a sequence; return vLLM's id of it."""

    def abort(self, keys: Iterable[str]) -> None:
        """Drop sequences by vLLM's ids; unknown ones are fine."""

    def step(self) -> CoreStep:
        """Run one step; what is drawn in it, the sampler has decided meanwhile."""

    def stats(self) -> CoreStats:
        """Return gauges and counters."""

    def close(self) -> None:
        """Free what it holds."""
