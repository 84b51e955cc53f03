"""FastMCP (https://gofastmcp.com) with the tools of `simple-tools-server`, as its documentation writes a server.

    uvicorn --loop uvloop --no-access-log tests.benchmarks.fastmcp_host:application

It has one server object for all users, and no keys. Its two transports have addresses of their own, so the session URL
of the benchmark is translated. It runs in an environment of its own: nothing of the project is imported here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastmcp import FastMCP
from starlette.applications import Starlette
from starlette.routing import Mount

server = FastMCP("simple-tools-server", version="1.0.0")
data: dict[str, str] = {}


# Without an output schema a result is the same text once, as in the server that the others serve.
@server.tool(name="store-data", output_schema=None)
async def store_data(key: str, value: str) -> str:
    """Store a value under a key, in place of an earlier one."""
    data[key] = value
    return f"Stored '{key}' with value: {value}"


@server.tool(name="retrieve-data", output_schema=None)
async def retrieve_data(key: str) -> str:
    """Return the value stored under a key."""
    return f"Value for '{key}': {data[key]}" if key in data else f"Key '{key}' not found"


streamable_http = server.http_app(path="/mcp")
sse = server.http_app(path="/sse", transport="sse")


async def session_url(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    """`GET` without a session id is HTTP+SSE, everything else Streamable HTTP."""
    if scope["path"].startswith("/messages"):
        await sse(scope, receive, send)
    elif scope["method"] == "GET" and all(name != b"mcp-session-id" for name, _ in scope["headers"]):
        await sse({**scope, "path": "/sse", "raw_path": b"/sse"}, receive, send)
    else:
        await streamable_http({**scope, "path": "/mcp", "raw_path": b"/mcp"}, receive, send)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Run both applications."""
    async with AsyncExitStack() as stack:
        for application in (streamable_http, sse):
            await stack.enter_async_context(application.lifespan(application))
        yield


application = Starlette(routes=[Mount("/", session_url)], lifespan=lifespan)
