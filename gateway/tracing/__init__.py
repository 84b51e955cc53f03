"""OpenTelemetry tracing, for `GUMCP_TRACING`: a span for each MCP request over HTTP, and one for each message in it.

* `starting` makes a `Tracing` from the settings, or nothing. It imports the rest only if there is tracing, so a host
  without it pays for none of it. `providing` puts OpenTelemetry's SDK together.
* `requests` makes the span of a request on the host's loop. `messages` makes the span of a message in the server's
  lane, in place of the SDK's own span. The ASGI scope carries the first to the second.
* `trace_context` reads and writes `traceparent` and `tracestate`. `current` hands them to commands and
  remote servers, and the trace's id to the log.
* `sampling` decides which requests are recorded. `exporting` sends spans to the collector.

Spans have nothing of what a caller sends or gets: no arguments, results, keys, session ids or texts of exceptions.
docs/tracing.md lists what they have.

Imports `http` and `conf`. Imported by `upstreams`, `instances`, `endpoints` and `host`.
"""
