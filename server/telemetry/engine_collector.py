"""Prometheus collectors that read the workers' latest reports when metrics are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from plait.server.telemetry.metrics import ENGINE_LABELS
from plait.server.wire.counters import EngineCounters
from plait.server.wire.messages import ModelInfo

# Metric name, help text, and how to read the value.
Count = tuple[str, str, Callable[[EngineCounters], int]]
VLLM_COUNTERS: tuple[Count, ...] = (
    (
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda c: c.prefix_cache_queries,
    ),
    ("vllm:prefix_cache_hits", "Prompt tokens found there.", lambda c: c.prefix_cache_hits),
    (
        "vllm:num_preemptions",
        "Sequences that gave their blocks back and were computed again.",
        lambda c: c.num_preemptions,
    ),
    ("vllm:prompt_tokens", "Prompt tokens computed.", lambda c: c.prompt_tokens),
    ("vllm:generation_tokens", "Tokens generated.", lambda c: c.generation_tokens),
)
# Of diffusion models only.
DIFFUSION_COUNTERS: tuple[Count, ...] = (
    (
        "vllm:diffusion_num_denoising_steps",
        "Forward passes over a sequence's canvas.",
        lambda c: c.diffusion.num_forwards,
    ),
    (
        "vllm:diffusion_num_canvas_positions",
        "Canvas rows computed, drafts included.",
        lambda c: c.diffusion.canvas_rows,
    ),
    (
        "vllm:diffusion_num_committed_tokens",
        "Tokens of canvases that were emitted.",
        lambda c: c.diffusion.committed_tokens,
    ),
)
# Of loaded workers, by the end of the name after plait_engine_; in the order of the names.
OWN_COUNTERS: dict[str, Callable[[EngineCounters], int]] = {
    "draft_store_namespaces_dropped": lambda c: c.draft_store.namespaces_dropped,
    "draft_store_saves_failed": lambda c: c.draft_store.saves_failed,
    "draft_store_tokens_added": lambda c: c.draft_store.tokens_added,
    "draft_store_tokens_dropped": lambda c: c.draft_store.tokens_dropped,
    "steps": lambda c: c.steps,
}
DRAFT_COUNTERS: tuple[Count, ...] = (
    (
        "vllm:spec_decode_num_drafts",
        "Drafts fed, one a sequence and step.",
        lambda c: c.speculation.num_drafts,
    ),
    (
        "vllm:spec_decode_num_draft_tokens",
        "Draft tokens fed.",
        lambda c: sum(c.speculation.draft_tokens.values()),
    ),
    (
        "vllm:spec_decode_num_accepted_tokens",
        "Draft tokens that came true.",
        lambda c: sum(c.speculation.accepted_tokens.values()),
    ),
)
# Metric name, label, help text, and how to read the values by the label's value.
LABELLED_DRAFT_COUNTERS: tuple[
    tuple[str, str, str, Callable[[EngineCounters], Mapping[Any, int]]], ...
] = (
    (
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "position",
        "Draft tokens that came true, by their place in the draft.",
        lambda c: c.speculation.accepted_at,
    ),
    (
        "plait_spec_decode_draft_tokens",
        "source",
        "Draft tokens fed, by drafter.",
        lambda c: c.speculation.draft_tokens,
    ),
    (
        "plait_spec_decode_accepted_tokens",
        "source",
        "Draft tokens that came true, by drafter.",
        lambda c: c.speculation.accepted_tokens,
    ),
)
GRAMMAR_COUNTERS = {
    "compiled": ("plait_grammar_compiles", "Response formats compiled."),
    "cache_hits": ("plait_grammar_cache_hits", "Response formats that were compiled before."),
    "refused": ("plait_grammar_refused", "Response formats that can't be enforced as they say."),
    "timeouts": ("plait_grammar_timeouts", "Compiles that ran out of time."),
    "crashes": ("plait_grammar_crashes", "Compiles that ended their process."),
    "unfinished": ("plait_grammar_unfinished", "Response formats given up for lack of time."),
    "seconds": ("plait_grammar_compiling_seconds", "CPU time spent compiling."),
}
GRAMMAR_GAUGES = {
    "cached_bytes": ("plait_grammar_cache_bytes", "Compiled response formats kept."),
    "waiting": ("plait_grammar_waiting", "Response formats that wait to be compiled."),
    "running": ("plait_grammar_running", "Response formats now compiled."),
}


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The latest report of one replica."""

    model: str
    engine: str
    info: ModelInfo | None  # None: never loaded so far
    num_running: int
    num_waiting: int
    kv_usage: float  # 0..1
    counters: EngineCounters  # since the server's start


class EngineCollector(Collector):
    """Collects from a function that returns the snapshots of all workers."""

    def __init__(self, snapshots: Callable[[], Iterable[EngineSnapshot]]) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Metric]:
        """Return nothing: otherwise registering would collect once."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families of all workers."""
        snapshots = list(self._snapshots())
        yield from _gauges(snapshots)
        yield _cache_config(snapshots)
        yield from _counters(snapshots)
        yield from _drafts(snapshots)


def _gauges(snapshots: Iterable[EngineSnapshot]) -> Iterator[Metric]:
    running = _gauge("vllm:num_requests_running", "Sequences now running.")
    waiting = _gauge("vllm:num_requests_waiting", "Sequences now waiting.")
    usage = _gauge("vllm:kv_cache_usage_perc", "Used part of the KV cache, 0 to 1.")
    for snapshot in snapshots:
        labels = (snapshot.model, snapshot.engine)
        running.add_metric(labels, snapshot.num_running)
        waiting.add_metric(labels, snapshot.num_waiting)
        usage.add_metric(labels, snapshot.kv_usage)
    return iter((running, waiting, usage))


def _cache_config(snapshots: Iterable[EngineSnapshot]) -> Metric:
    family = GaugeMetricFamily(
        "vllm:cache_config_info",
        "The KV cache's shape, as labels.",
        labels=(*ENGINE_LABELS, "block_size", "num_gpu_blocks"),
    )
    for snapshot in snapshots:
        if snapshot.info is not None:
            shape = (str(snapshot.info.block_size), str(snapshot.info.num_blocks))
            family.add_metric((snapshot.model, snapshot.engine, *shape), 1)
    return family


def _counters(snapshots: list[EngineSnapshot]) -> Iterator[Metric]:
    """Yield vLLM's counters, and plait's own as plait_engine_*."""
    for name, text, read in VLLM_COUNTERS:
        yield _family(name, text, read, snapshots)
    if any(each.counters.diffusion.num_forwards for each in snapshots):
        for name, text, read in DIFFUSION_COUNTERS:
            yield _family(name, text, read, snapshots)
    own = dict(OWN_COUNTERS) if any(each.info is not None for each in snapshots) else {}
    if any(each.counters.token_trace_lost is not None for each in snapshots):
        own["token_trace_lost"] = lambda c: c.token_trace_lost or 0
    for name, read in own.items():
        yield _family(f"plait_engine_{name}", "Counted by the engine.", read, snapshots)


def _drafts(snapshots: list[EngineSnapshot]) -> Iterator[Metric]:
    """Yield vLLM's counters of all drafts, and those by position and by drafter."""
    generating = [each for each in snapshots if each.counters.generation_tokens]
    if not generating:
        return
    for name, text, read in DRAFT_COUNTERS:
        yield _family(name, text, read, generating)
    for name, label, text, read_all in LABELLED_DRAFT_COUNTERS:
        family = CounterMetricFamily(name, text, labels=(*ENGINE_LABELS, label))
        for each in generating:
            for value, count in read_all(each.counters).items():
                family.add_metric((each.model, each.engine, str(value)), count)
        yield family


def _family(
    name: str, text: str, read: Callable[[EngineCounters], int], snapshots: list[EngineSnapshot]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=ENGINE_LABELS)
    for each in snapshots:
        family.add_metric((each.model, each.engine), read(each.counters))
    return family


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=ENGINE_LABELS)


class GrammarCollector(Collector):
    """Collects from a function that returns the compile service's counters by name."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Return nothing: otherwise registering would collect once."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the service's metric families."""
        stats = self._stats()
        for name, (metric_name, text) in GRAMMAR_COUNTERS.items():
            yield CounterMetricFamily(metric_name, text, value=stats.get(name, 0.0))
        for name, (metric_name, text) in GRAMMAR_GAUGES.items():
            yield GaugeMetricFamily(metric_name, text, value=stats.get(name, 0.0))
