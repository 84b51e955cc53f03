"""Starts tracing as the settings and OpenTelemetry's own environment variables say."""

import logging
from typing import TYPE_CHECKING

from gateway.conf import SettingsError, conf

if TYPE_CHECKING:
    from gateway.tracing.tracing import Tracing

logger = logging.getLogger(__name__)


def tracing_from_settings() -> "Tracing | None":
    """Start to export traces, if the host is to do so. Call it once in a process.

    Raises:
        SettingsError: a variable of OpenTelemetry has a value that it does not take.
    """
    if not conf.tracing:
        return None
    # Only here, so that a host without tracing imports none of it.
    from opentelemetry import trace

    from gateway.tracing.providing import exporting_provider
    from gateway.tracing.tracing import Tracing

    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        logger.warning("OpenTelemetry was set up before the host started. Its traces go where that set-up says.")
        return Tracing(present)
    try:
        provider, stop = exporting_provider(conf.max_traces_per_second)
    except ValueError as error:
        raise SettingsError(
            f"GUMCP_TRACING is on, and a variable of OpenTelemetry (OTEL_…) is wrong: {error}"
        ) from None
    # So that servers' own spans, and those that the SDK makes when it asks a client something, are part of the traces.
    trace.set_tracer_provider(provider)
    return Tracing(provider, stop)
