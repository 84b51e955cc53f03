"""Python SDK 1.30: python_1_30.py URL sse|http. Prints what it saw as one JSON object."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, transport: str) -> dict[str, object]:
    progress: list[float] = []

    async def note(value: float, total: float | None, message: str | None) -> None:
        progress.append(value)

    connect = {"sse": sse_client, "http": streamable_http_client}[transport]
    async with connect(url) as streams, ClientSession(streams[0], streams[1]) as session:
        initialized = await session.initialize()
        tools = (await session.list_tools()).tools
        called = await session.call_tool("test_simple_text", {})
        await session.call_tool("test_tool_with_progress", {}, progress_callback=note)
        failed = await session.call_tool("test_error_handling", {})
    return {
        "protocol": str(initialized.protocolVersion),
        "tools": len(tools),
        "text": called.content[0].text,
        "progress": progress,
        "is_error": failed.isError,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
