"""What an engine has counted since its start; counters only grow."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec

Counters = TypeVar("Counters", bound=msgspec.Struct)
Key = TypeVar("Key", bound=Hashable)


class SpeculationCounters(msgspec.Struct):
    """Drafts; the dictionaries hold only keys that were counted."""

    num_drafts: int = 0  # at most one per sequence and step
    draft_tokens: dict[str, int] = {}  # verified, by drafter
    accepted_tokens: dict[str, int] = {}  # by drafter
    accepted_at: dict[int, int] = {}  # by position in the draft


class DiffusionCounters(msgspec.Struct):
    """Canvases."""

    num_forwards: int = 0  # one per sequence and step
    canvas_rows: int = 0  # computed, drafts included
    committed_tokens: int = 0  # emitted


class DraftStoreCounters(msgspec.Struct):
    """The drafters' stores."""

    tokens_added: int = 0
    tokens_dropped: int = 0
    namespaces_dropped: int = 0
    saves_failed: int = 0


class EngineCounters(msgspec.Struct):
    """Everything that an engine counts."""

    steps: int = 0
    prompt_tokens: int = 0  # computed
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_preemptions: int = 0
    token_trace_lost: int | None = None  # texts not written; None: no trace was asked for
    speculation: SpeculationCounters = msgspec.field(default_factory=SpeculationCounters)
    diffusion: DiffusionCounters = msgspec.field(default_factory=DiffusionCounters)
    draft_store: DraftStoreCounters = msgspec.field(default_factory=DraftStoreCounters)


def increment(counts: dict[Key, int], key: Key, amount: int = 1) -> None:
    """Add to one count of a dictionary."""
    counts[key] = counts.get(key, 0) + amount


def add_counters(first: Counters, second: Counters) -> Counters:
    """Return the sums, field by field and key by key; neither argument changes."""
    values = zip(msgspec.structs.astuple(first), msgspec.structs.astuple(second), strict=True)
    return type(first)(*(_add(a, b) for a, b in values))


def _add(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict):
        return {key: first.get(key, 0) + second.get(key, 0) for key in first | second}
    if isinstance(first, msgspec.Struct):
        return add_counters(first, second)
    return first + second
