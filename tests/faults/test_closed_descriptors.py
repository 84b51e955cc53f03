"""A server that closes descriptors 0 to 2, as daemons do: the log goes on, and nobody else gets its lines."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tests.faults.figures import Record
from tests.support.host_process import StartHost
from tests.support.processes import until
from tests.support.server_folders import WriteServer

CLOSER = """
    import logging
    import os
    import sys
    from mcp import types
    from mcp.server import Server

    os.closerange(0, 3)


    def server(user_id, api_key=None):
        async def list_tools(ctx, params):
            return types.ListToolsResult(tools=[types.Tool(name="close", input_schema={"type": "object"})])

        async def call_tool(ctx, params):
            os.closerange(0, 3)
            return types.CallToolResult(content=[types.TextContent(text="closed")])

        return Server("closer", on_list_tools=list_tools, on_call_tool=call_tool)


    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_log_goes_on_and_into_no_clients_stream(
    start_host: StartHost, write_server: WriteServer, record: Record, asgi_server: str
) -> None:
    with (
        start_host(asgi_server=asgi_server, server_dirs=write_server("closer", CLOSER)) as host,
        host.session("closer", "first:key") as first,
        ExitStack() as stack,
    ):
        opened = {os.readlink(f"/proc/{host.pid}/fd/{number}") for number in range(3)}
        assert str(host.log_path) in opened, "the descriptors that were closed at the import are not open again"
        assert first.call("close")
        # These connections get the numbers.
        streams = [stack.enter_context(host.session("closer", f"user-{number}:key")) for number in range(5)]
        taken = [os.readlink(f"/proc/{host.pid}/fd/{number}") for number in range(3)]
        assert [name for name in taken if name.startswith("socket:")] == taken
        until(lambda: host.log().count("SSE connection established for closer session: user-") == 5)
        # What comes is an answer and nothing else.
        for stream in streams:
            stream.send({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})
            assert stream.answer("list")["result"]["tools"]
        record("descriptors 0 to 2 closed", f"they are {', '.join(taken)} now, and the log is whole")
