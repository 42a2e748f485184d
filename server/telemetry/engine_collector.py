"""Turns what the workers report into metrics at the moment they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from plait.server.telemetry.metrics import ENGINE_LABELS
from plait.server.wire.messages import ModelInfo

VLLM_COUNTERS = {
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found there.",
    "num_preemptions": "Sequences that gave their blocks back and were computed again.",
    "prompt_tokens": "Prompt tokens computed.",
    "generation_tokens": "Tokens generated.",
}
# Of diffusion models only: vLLM's name, what the engine calls it, and the help.
DIFFUSION_COUNTERS = {
    "diffusion_num_denoising_steps": (
        "diffusion_forwards",
        "Forward passes over a sequence's canvas.",
    ),
    "diffusion_num_canvas_positions": (
        "diffusion_canvas_rows",
        "Canvas rows computed, drafts included.",
    ),
    "diffusion_num_committed_tokens": (
        "diffusion_committed_tokens",
        "Tokens of canvases that were emitted.",
    ),
}
# Of drafts: name, label, what the engine calls it before a colon and the label's value, and help.
DRAFT_COUNTERS = (
    (
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "position",
        "accepted_at",
        "Draft tokens that came true, by their place in the draft.",
    ),
    ("plait_spec_decode_draft_tokens", "source", "draft_tokens", "Draft tokens fed, by drafter."),
    (
        "plait_spec_decode_accepted_tokens",
        "source",
        "accepted_tokens",
        "Draft tokens that came true, by drafter.",
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
    """One worker as it last reported itself."""

    model: str
    engine: str
    info: ModelInfo | None  # None: never loaded so far
    num_running: int
    num_waiting: int
    kv_usage: float  # 0..1
    counters: Mapping[str, float]  # since the server's start


class EngineCollector(Collector):
    """Collects from a function that returns the snapshots of all workers."""

    def __init__(self, snapshots: Callable[[], Iterable[EngineSnapshot]]) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance, so that registering collects nothing."""
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
    """Yield vLLM's counters, and as plait_engine_* whatever else the engines count."""
    counted = {name for snapshot in snapshots for name in snapshot.counters}
    names = {f"vllm:{name}": (name, text) for name, text in VLLM_COUNTERS.items()}
    names |= {
        f"vllm:{name}": (own_name, text)
        for name, (own_name, text) in DIFFUSION_COUNTERS.items()
        if own_name in counted
    }
    labelled = {name for name in counted if ":" in name} | {"drafts"}
    own = counted - labelled - {name for name, _ in names.values()}
    names |= {f"plait_engine_{name}": (name, "Counted by the engine.") for name in sorted(own)}
    for metric_name, (name, text) in names.items():
        family = CounterMetricFamily(metric_name, text, labels=ENGINE_LABELS)
        for snapshot in snapshots:
            family.add_metric((snapshot.model, snapshot.engine), snapshot.counters.get(name, 0.0))
        yield family


def _drafts(snapshots: list[EngineSnapshot]) -> Iterator[Metric]:
    """Yield what became of drafts: vLLM's counters of all, and those by place and by drafter."""
    sums = (
        ("num_drafts", "drafts", "Drafts fed, one a sequence and step."),
        ("num_draft_tokens", "draft_tokens:", "Draft tokens fed."),
        ("num_accepted_tokens", "accepted_tokens:", "Draft tokens that came true."),
    )
    drafting = [snapshot for snapshot in snapshots if "drafts" in snapshot.counters]
    for name, start, text in sums if drafting else ():
        family = CounterMetricFamily(f"vllm:spec_decode_{name}", text, labels=ENGINE_LABELS)
        for snapshot in drafting:
            total = sum(n for key, n in snapshot.counters.items() if key.startswith(start))
            family.add_metric((snapshot.model, snapshot.engine), total)
        yield family
    for metric_name, label, own_name, text in DRAFT_COUNTERS if drafting else ():
        family = CounterMetricFamily(metric_name, text, labels=(*ENGINE_LABELS, label))
        for snapshot in drafting:
            for value, count in _labelled(snapshot.counters, own_name):
                family.add_metric((snapshot.model, snapshot.engine, value), count)
        yield family


def _labelled(counters: Mapping[str, float], wanted: str) -> Iterator[tuple[str, float]]:
    """Yield the label's value and the count of each counter whose name goes on with a colon."""
    for key, count in counters.items():
        name, _, value = key.partition(":")
        if name == wanted:
            yield value, count


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=ENGINE_LABELS)


class GrammarCollector(Collector):
    """Collects from a function that returns the compile service's counters by name."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance, so that registering collects nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the service's metric families."""
        stats = self._stats()
        for name, (metric_name, text) in GRAMMAR_COUNTERS.items():
            yield CounterMetricFamily(metric_name, text, value=stats.get(name, 0.0))
        for name, (metric_name, text) in GRAMMAR_GAUGES.items():
            yield GaugeMetricFamily(metric_name, text, value=stats.get(name, 0.0))
