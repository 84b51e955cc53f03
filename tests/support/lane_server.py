"""An SDK server in a lane, as transports see one, without a module, a generation and an instance."""

from __future__ import annotations

import asyncio
import threading
from contextvars import Context
from typing import Any, Final

import anyio
from mcp import types
from mcp.server import Server, ServerRequestContext

from gateway.access.identity import Identity
from gateway.instances.lanes import Lane
from gateway.transports.message_budget import MessageBudget, MessageMemory
from gateway.transports.sessions import Session

ADA: Final = Identity("ada", "key")
SCOPE: Final = {"type": "http", "method": "POST", "path": "/workshop/ada:key", "headers": []}


class LaneServer:
    """Stands for a `RunningServer`. Its tools do what their names say."""

    def __init__(self) -> None:
        self.lane = Lane("workshop")
        self.context = Context()
        self.lifespan_state: Any = {}
        self._gate = asyncio.Event()
        self._block = threading.Event()
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.server = Server("workshop", version="1", on_list_tools=self._list_tools, on_call_tool=self._call_tool)
        self.server.get_tool_input_schema = self._schema
        self.initialization_options = self.server.create_initialization_options()

    def unblock(self) -> None:
        """Let the tools go on that block the lane."""
        self._block.set()

    def open(self) -> None:
        """Let all tools go on."""
        self.unblock()
        self.lane.post(self._gate.set)

    def stop(self) -> None:
        self.open()
        self.lane.stop()

    async def prepare_tool_schema(self, name: str) -> None:
        """Nothing to prepare."""

    def _schema(self, name: str) -> dict[str, Any]:
        properties = {"region": {"type": "string", "x-mcp-header": "Region"}} if name == "deliver" else {}
        return {"type": "object", "properties": properties}

    async def _list_tools(
        self, ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="echo", input_schema={"type": "object"})])

    async def _call_tool(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        arguments = params.arguments or {}
        name = str(arguments.get("name", params.name))
        self.called.append(name)
        try:
            if params.name in ("wait", "tidy"):
                await self._gate.wait()
            elif params.name == "block":
                self._block.wait(10)
            elif params.name == "fail":
                raise RuntimeError("canary")
            elif params.name == "unwritable":
                return types.CallToolResult(content=[], structured_content={"x": object()})
            elif params.name == "tell":
                await self._tell(ctx, arguments["text"], ctx.request_id)
                if arguments.get("waits"):
                    await self._gate.wait()
            elif params.name == "tell aside":
                await self._tell(ctx, arguments["text"], None)
            elif params.name == "close stream":
                assert ctx.close_sse_stream is not None
                await ctx.close_sse_stream()
        except anyio.get_cancelled_exc_class():
            if params.name == "tidy":
                await asyncio.sleep(0.05)
            self.cancelled.append(name)
            raise
        return types.CallToolResult(content=[types.TextContent(text=str(arguments.get("text", "done")))])

    async def _tell(self, ctx: ServerRequestContext[Any], text: str, request_id: Any) -> None:
        params = types.LoggingMessageNotificationParams(level="info", data=text)
        await ctx.session.send_notification(
            types.LoggingMessageNotification(params=params), related_request_id=request_id
        )


def new_session(transport: Any = "streamable-http", **facts: Any) -> Session:
    return Session("workshop", ADA, transport, "127.0.0.1", **facts)


def new_budget() -> MessageBudget:
    return MessageBudget(host_bytes=1000, address_bytes=1000, key_bytes=1000)


def new_memory(budget: MessageBudget | None = None, size_bytes: int = 10) -> MessageMemory:
    """The memory of one message."""
    return (budget or new_budget()).hold(ADA, "127.0.0.1", size_bytes)
