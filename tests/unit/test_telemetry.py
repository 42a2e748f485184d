"""Metrics keep vLLM's names, logs keep to one line, traces keep quiet unless asked."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from plait.server.settings import TelemetrySettings
from plait.server.telemetry.engine_collector import EngineCollector, EngineSnapshot
from plait.server.telemetry.logs import configure_logging, log_access, log_prompt, request_scope
from plait.server.telemetry.metrics import Metrics, SequenceTimes, token_buckets
from plait.server.telemetry.otlp import OpenTelemetry
from plait.server.telemetry.tracing import GenerationSpan, Message, Receive, Scope, Send, Tracing
from plait.server.wire.counters import (
    DiffusionCounters,
    DraftStoreCounters,
    EngineCounters,
    SpeculationCounters,
    add_counters,
)
from plait.server.wire.messages import ModelInfo

INFO = ModelInfo("m", 2048, 100, 64, 16, "int4", "fp", [], 1.0)
LABELS = {"model_name": "m", "engine": "0"}


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def snapshot(**fields: Any) -> EngineSnapshot:
    return EngineSnapshot("m", "0", INFO, 3, 2, 0.25, EngineCounters(**fields))


def test_the_names_are_those_of_vllm() -> None:
    metrics = Metrics()
    metrics.registry.register(EngineCollector(lambda: [snapshot(prefix_cache_hits=7)]))
    metrics.engine("m", "0")
    text = metrics.render()[0].decode()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "cache_config_info",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "request_time_per_output_token_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket",
        "request_inference_time_seconds_bucket",
        "request_prefill_time_seconds_bucket",
        "request_decode_time_seconds_bucket",
        "request_prompt_tokens_bucket",
        "request_generation_tokens_bucket",
        "iteration_tokens_total_bucket",
        "request_params_n_bucket",
        "request_params_max_tokens_bucket",
    ):
        assert f"\nvllm:{name}{{" in text, name
    for name, want in {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prefix_cache_hits_total": 7,
        "vllm:prefix_cache_queries_total": 0,
    }.items():
        assert metrics.registry.get_sample_value(name, LABELS) == want


def test_counters_without_a_name_at_vllm_are_plaits_own() -> None:
    metrics = Metrics()
    counted = snapshot(steps=2, draft_store=DraftStoreCounters(tokens_added=3, saves_failed=1))
    metrics.registry.register(EngineCollector(lambda: [counted]))
    have = {
        sample.name.removeprefix("plait_engine_"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("plait_engine_") and sample.name.endswith("_total")
    }
    assert have == {
        "steps_total": 2,
        "draft_store_tokens_added_total": 3,
        "draft_store_tokens_dropped_total": 0,
        "draft_store_namespaces_dropped_total": 0,
        "draft_store_saves_failed_total": 1,
    }


@pytest.mark.parametrize("lost", [None, 0, 4])
def test_lost_texts_are_counted_where_a_token_trace_is_written(lost: int | None) -> None:
    metrics = Metrics()
    metrics.registry.register(EngineCollector(lambda: [snapshot(token_trace_lost=lost)]))
    have = metrics.registry.get_sample_value("plait_engine_token_trace_lost_total", LABELS)
    assert have == lost


def test_canvases_are_counted_under_the_names_of_vllm() -> None:
    metrics = Metrics()
    counted = snapshot(diffusion=DiffusionCounters(5, 80, 9))
    metrics.registry.register(EngineCollector(lambda: [counted]))
    for name, want in {
        "vllm:diffusion_num_denoising_steps_total": 5,
        "vllm:diffusion_num_canvas_positions_total": 80,
        "vllm:diffusion_num_committed_tokens_total": 9,
    }.items():
        assert metrics.registry.get_sample_value(name, LABELS) == want
    assert "plait_engine_diffusion" not in metrics.render()[0].decode()


def test_without_a_canvas_there_are_no_such_names() -> None:
    metrics = Metrics()
    metrics.registry.register(EngineCollector(lambda: [snapshot()]))
    assert "diffusion" not in metrics.render()[0].decode()


def test_drafts_are_counted_under_the_names_of_vllm_and_by_source() -> None:
    metrics = Metrics()
    speculation = SpeculationCounters(
        4, {"n-gram": 7, "prediction": 30}, {"prediction": 25}, {0: 3, 10: 2}
    )
    counted = snapshot(generation_tokens=29, speculation=speculation)
    metrics.registry.register(EngineCollector(lambda: [counted]))
    have = metrics.registry.get_sample_value
    for name, want in {"num_drafts": 4, "num_draft_tokens": 37, "num_accepted_tokens": 25}.items():
        assert have(f"vllm:spec_decode_{name}_total", LABELS) == want
    for place, want in {"0": 3, "10": 2}.items():
        labels = LABELS | {"position": place}
        assert have("vllm:spec_decode_num_accepted_tokens_per_pos_total", labels) == want
    for name, source, want in [("draft", "n-gram", 7), ("accepted", "prediction", 25)]:
        labels = LABELS | {"source": source}
        assert have(f"plait_spec_decode_{name}_tokens_total", labels) == want
    assert "plait_engine_draft_tokens" not in metrics.render()[0].decode()


def test_without_drafts_there_are_no_such_names() -> None:
    metrics = Metrics()
    metrics.registry.register(EngineCollector(lambda: [snapshot()]))
    assert "spec_decode" not in metrics.render()[0].decode()


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.rejected.labels("queue").inc()
    name = "plait_requests_rejected_total"
    assert one.registry.get_sample_value(name, {"reason": "queue"}) == 1
    assert other.registry.get_sample_value(name, {"reason": "queue"}) is None


def test_times_of_a_sequence() -> None:
    metrics = Metrics()
    times = SequenceTimes(arrived=1.0, started=2.0, first_token=4.0, last_token=10.0, tokens=4)
    metrics.engine("m", "0").finished("stop", times)
    for name, want in {
        "e2e_request_latency_seconds": 9,
        "request_inference_time_seconds": 8,
        "request_prefill_time_seconds": 2,
        "request_decode_time_seconds": 6,
        "request_time_per_output_token_seconds": 2,
        "request_generation_tokens": 4,
    }.items():
        assert metrics.registry.get_sample_value(f"vllm:{name}_sum", LABELS) == want


def test_a_client_cannot_make_labels() -> None:
    metrics = Metrics()
    metrics.observe_http(route="/health", method="X" * 99, status=405, seconds=0.1)
    labels = {"route": "/health", "method": "OTHER", "status": "405"}
    assert metrics.registry.get_sample_value("plait_http_requests_total", labels) == 1


def test_token_buckets_are_the_1_2_5_series() -> None:
    assert token_buckets(100) == [1, 2, 5, 10, 20, 50, 100]
    assert token_buckets(4) == [1, 2]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_text_of_a_client_can_forge_a_line(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging(TelemetrySettings(log_format=log_format), stream)  # type: ignore[arg-type]
    evil = "/v1\r\n2026 [info] forged\x1b[31m\u2028"
    log_access(method="GET", path=evil, status=404, seconds=0.1, client="::1", request_id="r")
    structlog.get_logger().warning(evil)
    logging.getLogger("uvicorn.error").warning("from %s", evil)
    text = stream.getvalue()
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text


def test_lines_carry_the_request_id_and_are_json() -> None:
    stream = io.StringIO()
    configure_logging(TelemetrySettings(log_format="json"), stream)
    with request_scope("req_1"):
        structlog.get_logger().info("inside")
        logging.getLogger("other").warning("stdlib")
    structlog.get_logger().info("outside")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("request_id") for line in lines] == ["req_1", "req_1", None]
    assert [line["event"] for line in lines] == ["inside", "stdlib", "outside"]


def test_prompts_are_logged_on_demand_only() -> None:
    stream = io.StringIO()
    configure_logging(TelemetrySettings(), stream)
    log_prompt(TelemetrySettings(), "r", "secret")
    assert stream.getvalue() == ""
    log_prompt(TelemetrySettings(log_prompts=True), "r", "secret")
    assert "secret" in stream.getvalue()


def test_levels_are_honoured() -> None:
    stream = io.StringIO()
    configure_logging(TelemetrySettings(log_level="error"), stream)
    structlog.get_logger().warning("quiet")
    logging.getLogger("other").warning("quiet")
    assert stream.getvalue() == ""


GENERATION = GenerationSpan(
    model="m",
    request_id="r",
    max_tokens=9,
    n=1,
    temperature=0.5,
    top_p=1.0,
    input_tokens=3,
    output_tokens=2,
    finish_reasons=["stop"],
    arrived=10.0,
    started=11.0,
    first_token=12.0,
    ended=14.0,
)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _swallow(message: Message) -> None:
    pass


async def test_a_generation_is_a_child_of_the_clients_trace() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = OpenTelemetry(provider)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracing.generation(GENERATION)
        await send({"type": "http.response.start", "status": 201, "headers": []})

    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = [(b"traceparent", f"00-{trace_id}-{span_id}-01".encode())]
    scope: Scope = {"type": "http", "method": "POST", "headers": headers}
    await tracing.wrap(app)(scope, _nothing, _swallow)
    tracing.close()
    child, server = exporter.get_finished_spans()
    assert child.attributes is not None and server.attributes is not None
    assert f"{server.context.trace_id:032x}" == trace_id
    assert child.parent is not None and child.parent.span_id == server.context.span_id
    assert server.attributes["http.response.status_code"] == 201
    assert child.attributes["gen_ai.usage.output_tokens"] == 2
    assert child.attributes["gen_ai.latency.time_to_first_token"] == 2.0
    assert child.start_time is not None and child.end_time is not None
    assert child.end_time - child.start_time == pytest.approx(4e9, rel=1e-6)


async def test_without_an_endpoint_nothing_is_wrapped() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    tracing = Tracing()
    assert tracing.wrap(app) is app
    tracing.generation(GENERATION)
    tracing.close()


def test_counters_add_up_over_workers() -> None:
    """A worker that has ended and the next one: numbers and dictionaries are summed."""
    first = EngineCounters(
        steps=3, speculation=SpeculationCounters(1, {"n-gram": 2}, {}, {0: 1}), token_trace_lost=1
    )
    second = EngineCounters(steps=4, speculation=SpeculationCounters(2, {"n-gram": 3, "suffix": 1}))
    have = add_counters(first, second)
    speculation = SpeculationCounters(3, {"n-gram": 5, "suffix": 1}, {}, {0: 1})
    assert have == EngineCounters(steps=7, speculation=speculation, token_trace_lost=1)
    assert first.speculation.draft_tokens == {"n-gram": 2}, "an argument has changed"
