"""Every metric of the server, in a registry of its own.

vLLM's names, labels and buckets where both servers have a metric, so that its dashboards,
autoscalers and routers work unchanged; the others begin with `plait_`. prometheus-client appends
`_total` to counters. Label values come from fixed sets (models, engines, route templates, reasons),
never from a client.

Source: the metric names and buckets of vLLM 0.32, v1/metrics/loggers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector

ENGINE_LABELS = ("model_name", "engine")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_LATENCY_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
N_BUCKETS = (1, 2, 5, 10, 20)
HTTP_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
COMPILE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def token_buckets(largest: int) -> list[float]:
    """Return the series 1, 2, 5, 10, 20, 50, ... up to `largest`."""
    decades = range(int(math.log10(largest)) + 1)
    steps = (factor * 10**decade for decade in decades for factor in (1, 2, 5))
    return [float(step) for step in steps if step <= largest]


# One series for all models: their lengths are not known until their workers have loaded.
TOKEN_BUCKETS = token_buckets(1_000_000)


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """Timestamps of one sequence, in seconds of time.monotonic()."""

    arrived: float
    started: float
    first_token: float
    last_token: float
    tokens: int


class Metrics:
    """All metric families; `engine()` returns those of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_request_families()
        self._make_own_families()

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"vllm:{name}", text, ENGINE_LABELS, buckets=buckets, registry=self.registry
        )

    def _make_request_families(self) -> None:
        seconds = self._histogram
        self.ttft = seconds(
            "time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS
        )
        self.itl = seconds(
            "inter_token_latency_seconds", "Between two outputs.", TOKEN_LATENCY_BUCKETS
        )
        self.tpot = seconds(
            "request_time_per_output_token_seconds",
            "Mean time of a token after the first.",
            TOKEN_LATENCY_BUCKETS,
        )
        self.e2e = seconds(
            "e2e_request_latency_seconds", "From arrival to the last token.", LATENCY_BUCKETS
        )
        self.queue = seconds("request_queue_time_seconds", "In the queue.", LATENCY_BUCKETS)
        self.inference = seconds("request_inference_time_seconds", "Running.", LATENCY_BUCKETS)
        self.prefill = seconds(
            "request_prefill_time_seconds", "Running, up to the first token.", LATENCY_BUCKETS
        )
        self.decode = seconds(
            "request_decode_time_seconds", "Running, after the first token.", LATENCY_BUCKETS
        )
        self.prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of a prompt.", TOKEN_BUCKETS
        )
        self.generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens of an answer.", TOKEN_BUCKETS
        )
        self.params_n = self._histogram("request_params_n", "The n asked for.", N_BUCKETS)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "The max_tokens asked for.", TOKEN_BUCKETS
        )
        self.iteration_tokens = self._histogram(
            "iteration_tokens_total", "Rows of one engine step.", ITERATION_BUCKETS
        )
        self.success = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason.",
            (*ENGINE_LABELS, "finished_reason"),
            registry=self.registry,
        )

    def _make_own_families(self) -> None:
        registry = self.registry
        self.worker_restarts = Counter(
            "plait_worker_restarts",
            "Workers started again, by what ended the one before.",
            (*ENGINE_LABELS, "reason"),
            registry=registry,
        )
        self.rejected = Counter(
            "plait_requests_rejected",
            "Requests that no worker took, by reason.",
            ("reason",),
            registry=registry,
        )
        self.compile_seconds = Histogram(
            "plait_grammar_compile_seconds",
            "Waiting for a response format to be compiled, cache hits included.",
            ("outcome",),
            buckets=COMPILE_BUCKETS,
            registry=registry,
        )
        self.http_requests = Counter(
            "plait_http_requests",
            "Answers, by route template, method and status.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.http_seconds = Histogram(
            "plait_http_request_duration_seconds",
            "Until the last byte of the answer.",
            ("route", "method"),
            buckets=HTTP_BUCKETS,
            registry=registry,
        )
        self.diagnostics_lost = Counter(
            "plait_diagnostics_lost",
            "Log lines that could not be written, spans that could not be sent.",
            ("kind",),
            registry=registry,
        )
        self.sse_clients = Gauge("plait_sse_clients", "Streams now open.", registry=registry)

    def engine(self, model_name: str, engine: str) -> EngineMetrics:
        """Return the request metrics of one replica, bound to its labels."""
        return EngineMetrics(self, model_name, engine)

    def observe_http(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count a HTTP response. `route` is a template ("/v1/models/{model_id}"), never a path."""
        method = method if method in METHODS else "OTHER"
        self.http_requests.labels(route, method, str(status)).inc()
        self.http_seconds.labels(route, method).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class EngineMetrics:
    """The request metrics of one replica. Cost: a few microseconds per observation."""

    def __init__(self, metrics: Metrics, model_name: str, engine: str) -> None:
        labels = (model_name, engine)
        self._labels = labels
        self._success = metrics.success
        self._restarts = metrics.worker_restarts
        self._ttft = metrics.ttft.labels(*labels)
        self._itl = metrics.itl.labels(*labels)
        self._tpot = metrics.tpot.labels(*labels)
        self._e2e = metrics.e2e.labels(*labels)
        self._queue = metrics.queue.labels(*labels)
        self._inference = metrics.inference.labels(*labels)
        self._prefill = metrics.prefill.labels(*labels)
        self._decode = metrics.decode.labels(*labels)
        self._prompt_tokens = metrics.prompt_tokens.labels(*labels)
        self._generation_tokens = metrics.generation_tokens.labels(*labels)
        self._params_n = metrics.params_n.labels(*labels)
        self._params_max_tokens = metrics.params_max_tokens.labels(*labels)
        self._iteration_tokens = metrics.iteration_tokens.labels(*labels)

    def admitted(self, *, prompt_tokens: int, n: int, max_tokens: int) -> None:
        """Observe what a request asks for."""
        self._prompt_tokens.observe(prompt_tokens)
        self._params_n.observe(n)
        self._params_max_tokens.observe(max_tokens)

    def started(self, queue_s: float) -> None:
        """Observe that a request left the queue."""
        self._queue.observe(queue_s)

    def first_token(self, since_arrival_s: float) -> None:
        """Observe the first output of a sequence."""
        self._ttft.observe(since_arrival_s)

    def next_tokens(self, since_last_s: float) -> None:
        """Observe a later output of a sequence, of one token or several."""
        self._itl.observe(since_last_s)

    def finished(self, reason: str, times: SequenceTimes) -> None:
        """Observe the end of a sequence; one without tokens is only counted."""
        self._success.labels(*self._labels, reason).inc()
        if not times.tokens:
            return
        self._generation_tokens.observe(times.tokens)
        self._e2e.observe(times.last_token - times.arrived)
        self._inference.observe(times.last_token - times.started)
        self._prefill.observe(times.first_token - times.started)
        self._decode.observe(times.last_token - times.first_token)
        if times.tokens > 1:
            self._tpot.observe((times.last_token - times.first_token) / (times.tokens - 1))

    def steps(self, rows: Sequence[int]) -> None:
        """Observe the number of query tokens of the engine's latest steps."""
        for count in rows:
            self._iteration_tokens.observe(count)

    def restarted(self, reason: str) -> None:
        """Count a restart of the worker; `reason` is one of a few words."""
        self._restarts.labels(*self._labels, reason).inc()
