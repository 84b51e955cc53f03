"""The yardstick: the same servers behind the transports that come with the SDK, put together as its documentation says.

    uvicorn --loop uvloop --no-access-log tests.benchmarks.reference:application

One object per session key, as in the project. No metrics, no records, no limits, no lanes: all of that is free here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from mcp.server import Server
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send


@dataclass
class Instance:
    server: Server[Any]
    options: Any
    sse: SseServerTransport
    streamable_http: StreamableHTTPSessionManager

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        async with self.streamable_http.run():
            task_status.started()
            await anyio.sleep_forever()


@dataclass
class Reference:
    """Servers of a directory, each loaded when it is first asked for."""

    directory: Path
    tasks: TaskGroup | None = None
    modules: dict[str, Any] = field(default_factory=dict)
    instances: dict[tuple[str, str], Instance] = field(default_factory=dict)
    building: anyio.Lock = field(default_factory=anyio.Lock)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self.tasks:
            yield
            self.tasks.cancel_scope.cancel()

    async def instance(self, scope: Scope) -> Instance:
        name, key = scope["path_params"]["server_name"], scope["path_params"]["session_key"]
        if (known := self.instances.get((name, key))) is not None:
            return known
        async with self.building:
            if (name, key) not in self.instances:
                module = self.module(name)
                user_id, _, api_key = key.partition(":")
                server = module.server(user_id, api_key or None)
                options = module.get_initialization_options(server)
                sse = SseServerTransport(f"/{name}/{key}/messages/")
                instance = Instance(server, options, sse, StreamableHTTPSessionManager(server))
                assert self.tasks is not None
                await self.tasks.start(instance.serve)
                self.instances[name, key] = instance
        return self.instances[name, key]

    def module(self, name: str) -> Any:
        if name not in self.modules:
            spec = importlib.util.spec_from_file_location(f"reference_{name}", self.directory / name / "main.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.modules[name] = module
        return self.modules[name]


reference = Reference(Path(os.environ["GUMCP_SERVER_DIRS"]))


class SessionUrl:
    """``GET`` without a session id is HTTP+SSE, everything else Streamable HTTP."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        instance = await reference.instance(scope)
        if scope["method"] != "GET" or "mcp-session-id" in Request(scope).headers:
            await instance.streamable_http.handle_request(scope, receive, send)
            return
        async with instance.sse.connect_sse(scope, receive, send) as (read, write):
            await instance.server.run(read, write, instance.options)


class Messages:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await reference.instance(scope)).sse.handle_post_message(scope, receive, send)


application = Starlette(
    routes=[
        Route("/{server_name}/{session_key}", SessionUrl()),
        Mount("/{server_name}/{session_key}/messages", Messages()),
    ],
    lifespan=reference.lifespan,
)
