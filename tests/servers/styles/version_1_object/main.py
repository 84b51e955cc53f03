"""A low-level object of version 1 of the SDK, as in its examples: without a version, and run over stdio by `main`."""

import asyncio

from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.types import TextContent, Tool

app = Server("version_1_object")


@app.list_tools()
async def list_tools():
    return [Tool(name="whoami", inputSchema={"type": "object"})]


@app.call_tool()
async def call_tool(name, arguments):
    return [TextContent(type="text", text="one of many")]


async def main():
    async with stdio_server() as (read_stream, write_stream):
        await app.run(read_stream, write_stream, app.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())
