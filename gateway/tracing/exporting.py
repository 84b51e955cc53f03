"""Sends spans to the collector, in a thread of its own, and says once if that does not work.

OpenTelemetry's batch processor keeps a bounded number of spans and drops the rest, so a collector that is slow or down
costs no call anything. Its own log lines, one for each failed attempt, are switched off in the site's settings.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT: Final = "http://localhost:4318"

QUIET_SECONDS: Final = 600.0
"""How long nothing more is logged about a collector that comes and goes."""

EXCEPTION_TYPE: Final = "exception.type"


class QuietExporter(SpanExporter):
    """Passes spans on without the texts of exceptions, and logs when the collector stops or starts to take them.

    Used in the thread of the batch processor.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False
        self._logged_at = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export some spans."""
        result = self._exporter.export([without_exception_texts(span) for span in spans])
        is_failing = result is not SpanExportResult.SUCCESS
        now = time.monotonic()
        # That it works again is logged at once, that it fails again is not.
        is_quiet = is_failing and now - self._logged_at < QUIET_SECONDS
        if is_failing != self._is_failing and not is_quiet:
            self._is_failing, self._logged_at = is_failing, now
            if is_failing:
                logger.warning(
                    "The collector at %s takes no traces, and they are dropped until it does. Calls are not affected.",
                    _shown_endpoint(),
                )
            else:
                logger.info("The collector takes traces again")
        return result

    def shutdown(self) -> None:
        """Stop. An attempt that is under way gives up."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True


def without_exception_texts(span: ReadableSpan) -> ReadableSpan:
    """A span without what exceptions said, which may have what a caller sent. Their types stay.

    The host's own spans have no such texts. Those of the SDK and of servers' code have them by default.
    """
    has_texts = any(event.attributes and EXCEPTION_TYPE in event.attributes for event in span.events)
    if not has_texts and not span.status.description:
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[_without_text(event) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_text(event: Event) -> Event:
    attributes = event.attributes or {}
    if EXCEPTION_TYPE not in attributes:
        return event
    return Event(event.name, {EXCEPTION_TYPE: attributes[EXCEPTION_TYPE]}, event.timestamp)


def stop_exporting(processor: BatchSpanProcessor, exporter: QuietExporter, seconds: float) -> bool:
    """Export what is left, in about `seconds`. Returns False if it could not all be exported in time."""
    stopping = threading.Thread(target=processor.shutdown, name="traces-stop", daemon=True)
    stopping.start()
    stopping.join(seconds)
    if not stopping.is_alive():
        return True
    exporter.shutdown()
    return False


def _shown_endpoint() -> str:
    """Where the collector is, without what may be secret in its URL."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    parts = urlsplit(named or DEFAULT_ENDPOINT)
    if not parts.netloc:
        return "OTEL_EXPORTER_OTLP_ENDPOINT, which is not a URL,"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
