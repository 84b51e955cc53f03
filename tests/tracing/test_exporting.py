"""A collector that is down, slow or refuses: what is logged, and how long the host waits for it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from gateway.tracing import exporting
from gateway.tracing.exporting import QuietExporter, stop_exporting, without_exception_texts
from gateway.tracing.providing import exporting_provider
from gateway.tracing.tracing import Tracing
from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.in_process import host_in_process
from tests.support.server_folders import WriteServer
from tests.support.traces import collector


class Fake(SpanExporter):
    def __init__(self) -> None:
        self.result = SpanExportResult.SUCCESS
        self.taken: list[ReadableSpan] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.may_answer.wait()
        self.taken += spans
        return self.result

    def shutdown(self) -> None:
        self.may_answer.set()


def test_failure_is_logged_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:canary@collector.example:4318/?key=canary")
    fake = Fake()
    exporter = QuietExporter(fake)
    exporter.export([])
    assert caplog.messages == []
    fake.result = SpanExportResult.FAILURE
    for _ in range(100):
        exporter.export([])
    fake.result = SpanExportResult.SUCCESS
    for _ in range(100):
        exporter.export([])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "https://collector.example:4318 takes no traces" in caplog.messages[0]
    assert "canary" not in caplog.text


def test_collector_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fake = Fake()
    exporter = QuietExporter(fake)
    for _ in range(100):
        fake.result = SpanExportResult.FAILURE
        exporter.export([])
        fake.result = SpanExportResult.SUCCESS
        exporter.export([])
    assert len(caplog.records) == 2


def test_texts_of_exceptions_are_left_out_and_their_types_stay() -> None:
    ended: list[ReadableSpan] = []
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a server's code")
    with suppress(ValueError), tracer.start_as_current_span("work", attributes={"kept": 1}) as span:
        span.add_event("reached", {"step": 2})
        ended.append(span)  # type: ignore[arg-type]
        raise ValueError("canary")
    assert "canary" in ended[0].to_json()
    shown = without_exception_texts(ended[0])
    assert "canary" not in shown.to_json()
    assert "Traceback" not in shown.to_json()
    assert [dict(event.attributes or {}) for event in shown.events] == [{"step": 2}, {"exception.type": "ValueError"}]
    assert (shown.name, dict(shown.attributes or {}), shown.status.is_ok) == ("work", {"kept": 1}, False)


@pytest.mark.parametrize("is_hanging", [False, True])
def test_stop_exports_what_is_left_and_does_not_wait_for_a_collector_that_hangs(is_hanging: bool) -> None:
    fake = Fake()
    exporter = QuietExporter(fake)
    processor = BatchSpanProcessor(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    provider.get_tracer("host").start_span("last").end()
    if is_hanging:
        fake.may_answer.clear()
    started = time.monotonic()
    assert stop_exporting(processor, exporter, 0.2) is not is_hanging
    assert time.monotonic() - started < within(1)
    assert [span.name for span in fake.taken] == ([] if is_hanging else ["last"]) or is_hanging


@pytest.mark.parametrize(
    ("named", "shown"),
    [("", "http://localhost:4318 takes"), ("collector:4318", "OTEL_EXPORTER_OTLP_ENDPOINT, which is not a URL, takes")],
)
def test_failure_says_which_address_was_tried(
    named: str, shown: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", named)
    fake = Fake()
    fake.result = SpanExportResult.FAILURE
    QuietExporter(fake).export([])
    assert shown in caplog.messages[0]


async def test_collector_that_hangs_or_refuses_delays_no_call_and_is_logged_once(
    write_server: WriteServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.tracing")
    with collector() as found:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": found.endpoint,
            # Exported is what fills a batch.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
            "OTEL_BSP_MAX_QUEUE_SIZE": "16",
        }.items():
            monkeypatch.setenv(name, value)
        provider, stop = exporting_provider(1000)
        async with host_in_process(write_server("sound"), tracing=Tracing(provider, stop)) as host:

            async def calls_until(condition: Callable[[], object]) -> None:
                async with asyncio.timeout(WAIT_SECONDS):
                    while not condition():
                        assert (await host.post_stateless("/sound/ada", "server/discover").reply()).status == 200

            found.may_answer.clear()
            await calls_until(lambda: found.requests)
            for _ in range(50):
                assert (await host.post_stateless("/sound/ada", "server/discover").reply()).status == 200
            assert not found.spans
            found.status = 400
            found.may_answer.set()
            await calls_until(lambda: found.requests > 5)
            assert not found.spans
            found.status = 200
            await calls_until(lambda: found.spans)
        said = [record.levelname for record in caplog.records if record.name == exporting.__name__]
        assert said == ["WARNING", "INFO"]
