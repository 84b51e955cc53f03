"""What a version 1 handler sees of the request that it answers: `request_ctx`, and a session to talk to the client.

A handler runs on another loop than the connection (`handler_threads`), and everything of a connection belongs to the
loop that serves it. So the session here is a stand-in: its coroutine methods run on that loop and are awaited here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import RequestId
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from gateway.compat.models import McpError, RequestMeta, request_meta, unwrap, view_instance


class RequestContext:
    """Version 1's `mcp.shared.context.RequestContext`. Its type parameters are accepted and ignored.

    Most handlers never look at it, so what takes time to make is made when it is first read.
    """

    experimental: Any = None

    def __init__(self, ctx: ServerRequestContext[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        """`loop` serves the connection."""
        self._ctx = ctx
        self._loop = loop
        self.request_id: RequestId | None = ctx.request_id
        self.lifespan_context: Any = ctx.lifespan_context
        self.request: Any = ctx.request

    def __class_getitem__(cls, _parameters: Any) -> type[RequestContext]:
        return cls

    @cached_property
    def meta(self) -> RequestMeta | None:
        return request_meta(self._ctx.meta)

    @cached_property
    def session(self) -> OwnerLoopSession:
        return OwnerLoopSession(self._ctx, self._loop)

    @cached_property
    def close_sse_stream(self) -> Callable[[], Awaitable[None]] | None:
        return _on_loop(self._loop, self._ctx.close_sse_stream)

    @cached_property
    def close_standalone_sse_stream(self) -> Callable[[], Awaitable[None]] | None:
        return _on_loop(self._loop, self._ctx.close_standalone_sse_stream)


request_ctx: Final[ContextVar[RequestContext]] = ContextVar("request_ctx")
"""Set while a handler is called, as in version 1."""


class OwnerLoopSession:
    """A `ServerSession` with version 1's signatures that may be used from any loop.

    Errors of the client arrive as `McpError`, which version 1's code catches. On a 2026-07-28 connection a server
    cannot ask the client anything, so `create_message`, `elicit` and `list_roots` raise one there.
    """

    def __init__(self, ctx: ServerRequestContext[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._ctx = ctx
        self._loop = loop

    @property
    def client_params(self) -> Any:
        params = self._ctx.session.client_params
        return None if params is None else view_instance(params)

    async def send_notification(self, notification: Any, related_request_id: RequestId | None = None) -> None:
        await self._call("send_notification", unwrap(notification), related_request_id)

    async def send_request(
        self,
        request: Any,
        result_type: type[Any],
        request_read_timeout_seconds: timedelta | float | None = None,
        metadata: Any = None,
        progress_callback: Any = None,
    ) -> Any:
        if isinstance(request_read_timeout_seconds, timedelta):
            request_read_timeout_seconds = request_read_timeout_seconds.total_seconds()
        return await self._call(
            "send_request", unwrap(request), result_type, request_read_timeout_seconds, metadata, progress_callback
        )

    async def send_progress_notification(
        self,
        progress_token: str | int,
        progress: float,
        total: float | None = None,
        message: str | None = None,
        related_request_id: RequestId | None = None,
    ) -> None:
        if related_request_id is None and self._ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            # 2026-07-28 has no stream beside the request's own. Without this the notification is dropped.
            related_request_id = self._ctx.request_id
        await self._call("send_progress_notification", progress_token, progress, total, message, related_request_id)

    async def elicit(self, message: str, requestedSchema: Any, related_request_id: RequestId | None = None) -> Any:
        return await self._call("elicit_form", message, requestedSchema, related_request_id)

    async def elicit_form(
        self,
        message: str,
        requestedSchema: Any = None,
        related_request_id: RequestId | None = None,
        *,
        requested_schema: Any = None,
    ) -> Any:
        # Version 2's own helpers use version 2's name.
        schema = requested_schema if requestedSchema is None else requestedSchema
        return await self._call("elicit_form", message, schema, related_request_id)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ctx.session, name)
        if inspect.iscoroutinefunction(inspect.unwrap(value)):

            async def call(*args: Any, **kwargs: Any) -> Any:
                return await self._call(name, *args, **kwargs)

            return call
        return value

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # Unwrapped: version 2 warns that sampling, roots and logging are deprecated. The author wrote for version 1,
        # and the operator, who would see the warning, cannot change that.
        method = inspect.unwrap(getattr(type(self._ctx.session), name))
        try:
            result = await _await_on(self._loop, method(self._ctx.session, *args, **kwargs))
        except McpError:
            raise
        except MCPError as exc:
            raise McpError(exc.error) from exc
        return view_instance(result) if isinstance(result, BaseModel) else result


def _on_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Awaitable[None]] | None
) -> Callable[[], Awaitable[None]] | None:
    if function is None:
        return None

    async def perform() -> None:
        await function()

    return lambda: _await_on(loop, perform())


async def _await_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    if asyncio.get_running_loop() is loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))
