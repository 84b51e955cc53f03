"""Puts OpenTelemetry's SDK together from its environment variables: sampler, batch processor and exporter."""

import os
from collections.abc import Callable
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from gateway import __version__
from gateway.tracing.exporting import QuietExporter, stop_exporting
from gateway.tracing.sampling import BoundedSampler


def exporting_provider(max_traces_per_second: int) -> tuple[TracerProvider, Callable[[float], bool]]:
    """Make a provider that exports over OTLP/HTTP. Also returns how to stop it: see `stop_exporting`.

    Raises:
        ValueError: an environment variable has a value that OpenTelemetry does not take.
    """
    own = Resource({"service.version": __version__, "service.instance.id": str(uuid4()), "process.pid": os.getpid()})
    resource = own.merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "gumcp"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.sampler = BoundedSampler(provider.sampler, max_traces_per_second)
    exporter = QuietExporter(OTLPSpanExporter())
    processor = BatchSpanProcessor(exporter)  # starts its thread, so it comes last
    provider.add_span_processor(processor)
    return provider, lambda seconds: stop_exporting(processor, exporter, seconds)
