"""Traces for tests: spans kept in memory, and a collector that takes them over OTLP/HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from gateway.tracing.exporting import without_exception_texts
from gateway.tracing.tracing import Tracing
from tests.support.deadlines import WAIT_SECONDS
from tests.support.processes import until

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT: Final = "00f067aa0ba902b7"
TRACEPARENT: Final = f"00-{TRACE}-{PARENT}-01"


@dataclass(frozen=True)
class Span:
    """One span, from memory or from the collector."""

    name: str
    trace: str
    id: str
    parent: str
    """The id of the span above it; empty if there is none."""
    kind: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """Traces that it is linked to."""
    shown: str = field(repr=False)
    """Everything that is in it, as text."""
    resource: dict[str, Any] = field(repr=False, default_factory=dict)


class KeptTraces:
    """Spans of a host in process."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self.provider)

    @property
    def spans(self) -> list[Span]:
        """The spans that have ended, as they would be exported."""
        return [_of_memory(without_exception_texts(span)) for span in self._exporter.get_finished_spans()]

    def clear(self) -> None:
        self._exporter.clear()


def _of_memory(span: ReadableSpan) -> Span:
    assert span.context is not None
    return Span(
        span.name,
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent is not None else "",
        span.kind.name,
        dict(span.attributes or {}),
        tuple(f"{link.context.trace_id:032x}" for link in span.links),
        span.to_json(),
    )


class Collector:
    """An OTLP/HTTP receiver. `status` is what it answers; while `may_answer` is cleared it keeps clients waiting."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.requests = 0
        self.raw = b""
        """All bodies."""
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        with self._lock:
            self.raw += body
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for scope in of_resource.scope_spans:
                    self._spans += [_of_protobuf(span, resource) for span in scope.spans]

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def named(self, name: str, **attributes: Any) -> list[Span]:
        """Spans with a name, and with these attributes (`__` stands for a dot)."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [span for span in self.spans if span.name == name and wanted.items() <= span.attributes.items()]

    def wait_for(self, name: str, count: int = 1, **attributes: Any) -> list[Span]:
        """The same, once there are `count` of them."""
        until(lambda: len(self.named(name, **attributes)) >= count, WAIT_SECONDS)
        return self.named(name, **attributes)

    def path(self, span: Span) -> list[str]:
        """The names of the spans from the root down to `span`, as far as they were exported."""
        by_id = {one.id: one for one in self.spans if one.trace == span.trace}
        names = [span.name]
        while (above := by_id.get(span.parent)) is not None:
            names.insert(0, above.name)
            span = above
        return names


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _of_protobuf(span: Any, resource: dict[str, Any]) -> Span:
    kinds = {2: "SERVER", 3: "CLIENT"}
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        kinds.get(span.kind, "INTERNAL"),
        _attributes(span.attributes),
        tuple(link.trace_id.hex() for link in span.links),
        str(span),
        resource,
    )


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests += 1
            found.may_answer.wait(WAIT_SECONDS)
            if found.status == 200:
                found.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        found.may_answer.set()
        server.shutdown()
        thread.join(WAIT_SECONDS)
        server.server_close()
