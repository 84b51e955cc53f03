"""Python SDK 1.4.1, which knows HTTP+SSE only: python_1_4.py URL. Prints what it saw as one JSON object.

Its `call_tool` takes no progress callback yet: the token goes into the request by hand, and what comes back is read off
the session's incoming messages.
"""

import asyncio
import json
import sys

from mcp import ClientSession, types
from mcp.client.sse import sse_client


async def main(url: str) -> dict[str, object]:
    progress: list[float] = []

    async def note(session: ClientSession) -> None:
        async for message in session.incoming_messages:
            if isinstance(message, types.ServerNotification) and isinstance(message.root, types.ProgressNotification):
                progress.append(message.root.params.progress)

    async with sse_client(url) as streams, ClientSession(*streams) as session:
        reader = asyncio.create_task(note(session))
        initialized = await session.initialize()
        tools = (await session.list_tools()).tools
        called = await session.call_tool("test_simple_text", {})
        params = types.CallToolRequestParams(
            name="test_tool_with_progress", arguments={}, _meta=types.RequestParams.Meta(progressToken="p")
        )
        request = types.ClientRequest(types.CallToolRequest(method="tools/call", params=params))
        await session.send_request(request, types.CallToolResult)
        failed = await session.call_tool("test_error_handling", {})
        reader.cancel()
    return {
        "protocol": str(initialized.protocolVersion),
        "tools": len(tools),
        "text": called.content[0].text,
        "progress": progress,
        "is_error": failed.isError,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
