"""Tracing on real hosts: one tree from an official client to the last handler, in a collector."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway import __version__
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, ROOT, environment, until
from tests.support.server_folders import write_main
from tests.support.traces import Collector, collector

CANARY = "canary-9c2b"
TRANSPORTS = ("sse", "2025-11-25", "2026-07-28")
SESSION, MESSAGES = "POST /{server_name}/{session_key}", "POST /{server_name}/{session_key}/messages/"

WHERE = """
    import json
    from mcp.server import Server
    from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool
    from opentelemetry import trace

    async def list_tools(ctx, params):
        return ListToolsResult(tools=[Tool(name="where", input_schema={"type": "object"})])

    async def call_tool(ctx, params):
        with trace.get_tracer("author").start_as_current_span("the author's work"):
            context = trace.get_current_span().get_span_context()
        if params.arguments.get("fails"):
            with trace.get_tracer("author").start_as_current_span("the author's failure"):
                raise ValueError(params.arguments["text"])
        return CallToolResult(content=[TextContent(type="text", text=f"{context.trace_id:032x}")])

    def server(user_id, api_key=None):
        return Server("where", version="1", on_list_tools=list_tools, on_call_tool=call_tool)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


def make_calls(found: Collector, *calls: tuple[Any, ...]) -> list[list[str]]:
    """Make calls with an official client that traces. Returns the trace and the answer of each."""
    program = [sys.executable, "-m", "tests.support.traced_client", found.endpoint]
    done = subprocess.run(
        program, input=json.dumps(calls), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, timeout=60
    )
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


@contextmanager
def traced_workers(start_host: StartHost, found: Collector, folder: Path) -> Iterator[HostProcess]:
    """Two workers, so that some calls are relayed. `remote` is `where` of the same host, by its URL."""
    write_main(folder, "where", WHERE)
    write_main(folder, "alone", WHERE)
    (folder / "alone" / "server.json").write_text(json.dumps({"gumcp": {"isolation": "process"}}))
    entries = folder / "mcp.json"
    entries.write_text(json.dumps({"mcpServers": {}}))
    settings = {
        "GUMCP_TRACING": "true",
        "GUMCP_SERVERS_FILE": str(entries),
        "OTEL_EXPORTER_OTLP_ENDPOINT": found.endpoint,
        "OTEL_SERVICE_NAME": "named",
        # Nothing is exported before the end.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }
    with start_host(asgi_server="workers", server_dirs=folder, **settings) as host:
        until(lambda: "serves with 2 workers" in host.log())
        entries.write_text(json.dumps({"mcpServers": {"remote": {"url": host.url("where", f"remote:{CANARY}")}}}))
        until(lambda: host.log().count("Loaded server: remote") == 2)
        yield host


def test_call_is_one_tree_from_the_client_to_the_last_handler_and_workers_export_it_when_they_end(
    start_host: StartHost, tmp_path: Path
) -> None:
    with collector() as found:
        with traced_workers(start_host, found, tmp_path) as host:
            answers = make_calls(
                found,
                *(
                    (transport, host.url(server, f"lovelace:{CANARY}-{key}"), "where", {"text": CANARY})
                    for transport in TRANSPORTS
                    # One process is enough for `alone`.
                    for server, key in (("where", transport), ("where", transport * 2), ("remote", 1), ("alone", 1))
                ),
            )
            with host.session("where", f"lovelace:{CANARY}") as stream:
                stream.request("tools/call", {"name": "where", "arguments": {"text": "s3cret", "fails": True}})
            passed_on = ("gumcp_relayed_requests_total", "gumcp_given_connections_total")
            assert sum(map(host.metric, passed_on)) > 0
            assert {span.resource["service.name"] for span in found.spans} == {"client"}
        # All handlers were in the trace of their caller, those in a process of its own included.
        assert len(answers) == len({trace for trace, _ in answers}) == 12
        assert [handled for _, handled in answers] == [trace for trace, _ in answers]
        trees = Counter("/".join(found.path(span)) for span in found.named("the author's work"))
        last = "tools/call where/the author's work"
        for transport in TRANSPORTS:
            client = f"user over {transport}/MCP send tools/call where/{MESSAGES if transport == 'sse' else SESSION}"
            assert trees[f"{client}/{last}"] == 2, trees
            assert trees[f"{client}/tools/call where/tools/call (upstream)/{SESSION}/{last}"] == 1, trees
        assert len(found.named("tools/call (upstream)")) == 6
        workers = [span.resource for span in found.spans if span.resource["service.name"] == "named"]
        assert len({worker["process.pid"] for worker in workers}) == 2
        assert {worker["service.version"] for worker in workers} == {__version__}
        (failure,) = found.named("the author's failure")
        assert "ValueError" in failure.shown
        assert found.path(failure) == [MESSAGES, "tools/call where", "the author's failure"]
        assert CANARY.encode() not in found.raw
        assert b"s3cret" not in found.raw
        assert b"lovelace" not in found.raw


def test_host_without_tracing_imports_nothing_for_it(processes: None, tmp_path: Path) -> None:
    program = (
        "import sys, gumcp_site.asgi as site\n"
        "site.host.close()\n"
        "print(*[name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter',"
        " 'opentelemetry.proto', 'google.protobuf', 'gateway.tracing.'))])"
    )
    settings = environment(tmp_path, GUMCP_METRICS_PORT="0", GUMCP_SERVER_DIRS=str(PLAIN_SERVERS))
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    # None of these imports OpenTelemetry. The SDK of MCP imports its API, and nothing else of it.
    assert set(done.stdout.split()) <= {f"gateway.tracing.{name}" for name in ("starting", "facts", "current")}
