"""The official client with OpenTelemetry: `python -m tests.support.traced_client COLLECTOR`.

Standard input has a JSON list of calls, `[transport, url, tool, arguments]` each. Standard output gets a list of the
trace and the answer of each. The client's own spans go to the collector as those of the service `client`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from mcp import Client
from mcp.client.sse import sse_client
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


async def call(transport: str, url: str, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """List the tools and call one of them, below a span of the user's. Returns its trace and the answer's text."""
    connection: Any = sse_client(url) if transport == "sse" else url
    mode: Any = "auto" if transport == "2026-07-28" else "legacy"
    async with Client(connection, mode=mode, cache=None, read_timeout_seconds=20) as client:
        await client.list_tools()
        with trace.get_tracer("user").start_as_current_span(f"user over {transport}") as span:
            result: Any = await client.call_tool(tool, arguments)
        return f"{span.get_span_context().trace_id:032x}", result.content[0].text


async def main() -> None:
    """Make all calls at once."""
    print(json.dumps(await asyncio.gather(*(call(*each) for each in json.load(sys.stdin)))))


if __name__ == "__main__":
    provider = TracerProvider(resource=Resource.create({"service.name": "client"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{sys.argv[1]}/v1/traces")))
    trace.set_tracer_provider(provider)
    asyncio.run(main())
    provider.shutdown()
