"""A diagnostic that can't be written costs nobody an answer: it is told once, and counted."""

from __future__ import annotations

import io
import logging
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from benchmarks.drafters import read_trace
from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.settings import EngineSettings, TelemetrySettings
from plait.server.telemetry import otlp
from plait.server.telemetry.logs import configure_logging, count_lost_lines
from plait.server.telemetry.otlp import CountingExporter, OpenTelemetry
from plait.server.telemetry.telemetry import build_telemetry
from plait.server.telemetry.token_trace import TokenTrace
from tests.fixtures.engines import request, run, table_engine

FULL = Path("/dev/full")
LOST = "plait_diagnostics_lost_total"


def test_a_full_disk_costs_the_token_trace_and_no_answer() -> None:
    host = AutoregressiveDecoder(6)
    plain = run(table_engine({host.name: host}), [request("r", [1, 2], 5)])
    with capture_logs() as lines:
        engine = table_engine({host.name: host}, settings=EngineSettings(token_trace=str(FULL)))
        for _ in range(3):
            answers = run(engine, [request("r", [1, 2], 5)])
            assert answers["r", 0].tokens == plain["r", 0].tokens
    assert engine.stats().counters.token_trace_lost == 3
    assert [line["event"] for line in lines] == ["token trace not written"]
    assert "No space left" in lines[0]["reason"]


def test_a_trace_goes_on_when_it_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "trace.jsonl"
    with capture_logs() as lines, TokenTrace(path) as trace:
        trace.write([1], [2], "")
        path.parent.mkdir()
        trace.write([3], [4], "")
        trace.write([5], [6], "")
        assert trace.num_lost == 1
    assert [text.prompt_token_ids for text in read_trace(path)] == [[3], [5]]
    events = [line["event"] for line in lines]
    assert events == ["token trace not written", "token trace written again"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: what is written across it is cut there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_half_lines_are_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TokenTrace(path) as trace:
        trace.write([1, 2, 3], [4], "")
        size = path.stat().st_size
        with file_size_limit(size + 10), capture_logs():
            trace.write([1] * 100, [4], "")
        assert (path.stat().st_size, trace.num_lost) == (size, 1)
        trace.write([5], [6], "")
    assert [text.prompt_token_ids for text in read_trace(path)] == [[1, 2, 3], [5]]


def test_a_pipe_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with capture_logs(), TokenTrace(path) as trace:
        trace.write([1], [2], "")
        assert trace.num_lost == 1


def test_a_draft_store_that_cannot_be_saved_is_counted(tmp_path: Path) -> None:
    stores = DraftStores()
    stores.add("a", list(range(1000)), is_imported=True)
    path = tmp_path / "store"
    keeper = StoreKeeper(stores, path)
    with file_size_limit(100), capture_logs() as lines:
        assert not keeper.save()
    assert [line["event"] for line in lines] == ["draft store not saved"]
    assert keeper.counters().saves_failed == 1
    assert list(tmp_path.iterdir()) == []
    assert keeper.save()
    assert path.exists()


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Put the handlers back that a test replaces."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file on a full disk, which can't even be closed without a complaint."""
    file = FULL.open("w", buffering=1)
    yield file
    with suppress(OSError):
        file.close()


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_lines_of_the_log_that_cannot_be_written_are_counted(
    kind: str, full: TextIO, capsys: pytest.CaptureFixture[str]
) -> None:
    lost: list[int] = []
    stream = io.StringIO() if kind == "closed" else full
    configure_logging(TelemetrySettings(), stream)
    if kind == "closed":
        stream.close()
    structlog.get_logger().error("nobody counts yet")
    count_lost_lines(lambda: lost.append(1))
    structlog.get_logger().error("first")
    logging.getLogger("other").error("second")
    assert len(lost) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("root_logger")
def test_a_faulty_line_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lost: list[int] = []
    configure_logging(TelemetrySettings(), io.StringIO())
    count_lost_lines(lambda: lost.append(1))
    logging.getLogger("other").error("%d", "no number")
    assert lost == []
    assert "no number" in capsys.readouterr().err


@pytest.mark.usefixtures("root_logger")
def test_the_servers_metrics_have_what_was_lost(full: TextIO) -> None:
    configure_logging(TelemetrySettings(), full)
    telemetry = build_telemetry(TelemetrySettings())
    structlog.get_logger().error("lost")
    have = telemetry.metrics.registry.get_sample_value
    assert (have(LOST, {"kind": "log"}), have(LOST, {"kind": "spans"})) == (1, 0)


class Collector(SpanExporter):
    """Takes spans or not, as it is told; may wait for `free` first."""

    def __init__(self) -> None:
        self.result = SpanExportResult.FAILURE
        self.free = threading.Event()
        self.free.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.free.wait()
        logging.getLogger("opentelemetry.exporter").error("the SDK's own words")
        return self.result


def test_spans_that_cannot_be_sent_are_counted_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost: list[float] = []
    collector = Collector()
    exporter = CountingExporter(collector, lost.append)
    spans = [ReadableSpan("a"), ReadableSpan("b")]
    with capture_logs() as lines:
        for _ in range(3):
            exporter.export(spans)
        assert lost == [2, 2, 2]
        assert len(caplog.records) == 1
        collector.result = SpanExportResult.SUCCESS
        exporter.export(spans)
        exporter.export(spans)
    assert lost == [2, 2, 2]
    assert [line["log_level"] for line in lines] == ["error", "info"]
    assert logging.getLogger("opentelemetry").level == logging.NOTSET


def test_a_silent_collector_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_S", 0.01)
    collector = Collector()
    collector.free.clear()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(collector))
    tracing = OpenTelemetry(provider)
    provider.get_tracer("t").start_span("s").end()
    tracing.close()
    assert not collector.free.is_set(), "it has not waited for the collector"
    collector.free.set()
