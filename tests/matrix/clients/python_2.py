"""Python SDK 2.3: python_2.py URL auto|legacy. Prints what it saw as one JSON object."""

import asyncio
import json
import sys

from mcp.client import Client


async def main(url: str, mode: str) -> dict[str, object]:
    progress: list[float] = []

    async def note(value: float, total: float | None, message: str | None) -> None:
        progress.append(value)

    async with Client(url, mode=mode) as client:
        tools = (await client.list_tools()).tools
        called = await client.call_tool("test_simple_text", {})
        await client.call_tool("test_tool_with_progress", {}, progress_callback=note)
        failed = await client.call_tool("test_error_handling", {})
        version = client.protocol_version
    return {
        "protocol": version,
        "tools": len(tools),
        "text": called.content[0].text,
        "progress": progress,
        "is_error": failed.is_error,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
