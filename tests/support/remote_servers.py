"""MCP servers at URLs of this machine, of every era, and URLs that are not what an operator thought."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server import Server
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send


def _make_server() -> Server[Any]:
    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="who", input_schema={"type": "object"})])

    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        version = ctx.protocol_version
        key = ctx.request.headers.get("x-key", "") if ctx.request is not None else ""
        return types.CallToolResult(content=[types.TextContent(text=f"{version} {key}".strip())])

    return Server("remote", version="1", on_list_tools=list_tools, on_call_tool=call_tool)


class RemoteServers:
    """An ASGI application. `paths` has what was requested."""

    def __init__(self) -> None:
        self.server = _make_server()
        self.manager = StreamableHTTPSessionManager(self.server, json_response=True)
        self.sse = SseServerTransport("/messages/")
        self.paths: list[str] = []
        self.forgets_sessions = False
        self.url = ""
        self.other_url = ""
        """The same server under another origin."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        self.paths.append(path)
        if path.startswith("/messages/"):
            await self.sse.handle_post_message(scope, receive, send)
        elif path == "/sse":
            async with self.sse.connect_sse(scope, receive, send) as (read, write):
                await self.server.run(read, write, self.server.create_initialization_options())
        elif path in ("/mcp", "/modern", "/forgetful"):
            await self._streamable(path, scope, receive, send)
        else:
            await (await self._odd(path))(scope, receive, send)

    async def _streamable(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()

        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        if path == "/modern" and b'"initialize"' in body:
            error = {"code": UNSUPPORTED_PROTOCOL_VERSION, "message": "Unsupported protocol version"}
            answer = JSONResponse({"jsonrpc": "2.0", "id": json.loads(body)["id"], "error": error}, 400)
            await answer(scope, receive, send)
        elif path == "/forgetful" and self.forgets_sessions and "mcp-session-id" in request.headers:
            self.forgets_sessions = False
            await Response(status_code=404)(scope, receive, send)
        else:
            await self.manager.handle_request(scope, replay, send)

    async def _odd(self, path: str) -> Response:
        if path == "/moved":
            return RedirectResponse(f"{self.url}/mcp", 307)
        if path == "/away":
            return RedirectResponse(f"{self.other_url}/mcp", 307)
        if path == "/page":
            return HTMLResponse("<h1>Welcome</h1>")
        if path == "/bomb":
            server = {"name": "bomb", "version": "1"}
            result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": server}
            answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
            packed = gzip.compress(answer + b" " * 20_000_000)
            return Response(packed, media_type="application/json", headers={"Content-Encoding": "gzip"})
        if path == "/slow":
            await asyncio.sleep(60)
        return Response(status_code=int(path.removeprefix("/")))


@asynccontextmanager
async def remote_servers() -> AsyncIterator[RemoteServers]:
    """Run the servers in this loop, on a port of their own."""
    application = RemoteServers()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    application.url, application.other_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    async with application.manager.run():
        serving = asyncio.create_task(server._serve([listener]))  # `serve` would take the process's signals
        try:
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            yield application
        finally:
            server.should_exit = server.force_exit = True
            await serving
            listener.close()
