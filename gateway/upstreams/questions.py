"""Questions and notifications of the other side: finds the client that each is for, and asks that client.

In the handshake era the other side may ask its client something while a call runs (sampling, elicitation, roots). On a
pipe, a question does not say which call it belongs to. So it goes to the call in flight if there is only one, otherwise
to the newest session of the same user whose client can answer it. If calls of several users are in flight, which
happens where all share one process, nobody is asked: it may be about somebody else's call.

Clients of 2026-07-28 cannot be sent requests. Their call is parked: it is answered with the input that is required, and
a retry with that input resumes it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import mcp_types as types
import pydantic_core
from mcp.server.connection import Connection, allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.upstreams.placeholders import Caller

logger = logging.getLogger(__name__)

PARKED_SECONDS: Final = 300.0
"""How long a parked call waits for its client's input."""

MAX_PARKED: Final = 100
"""How many calls of one link may be parked at once."""

MAX_PARKED_BYTES: Final = 8 * 1024 * 1024
"""How long the parameters of those may be together that wait for their clients. A request counts for its client until
it is answered, and these were answered: with what input is required."""

TOO_MANY_PARKED: Final = "Too many calls are waiting for input. Try again later."

_QUESTIONS: Final[dict[str, tuple[str, type[types.Request[Any, Any]]]]] = {
    "sampling/createMessage": ("sampling", types.CreateMessageRequest),
    "elicitation/create": ("elicitation", types.ElicitRequest),
    "roots/list": ("roots", types.ListRootsRequest),
}
"""Method -> the capability that a client needs for it, and its type."""

_LIST_CHANGES: Final[dict[str, type[ToolsListChanged] | type[PromptsListChanged] | type[ResourcesListChanged]]] = {
    "notifications/tools/list_changed": ToolsListChanged,
    "notifications/prompts/list_changed": PromptsListChanged,
    "notifications/resources/list_changed": ResourcesListChanged,
}

Context = ServerRequestContext[Any, Any]


class _Anything(BaseModel):
    """A result that is passed on as it is."""

    model_config = ConfigDict(extra="allow")


def is_modern(ctx: Context) -> bool:
    """Whether a request came in the stateless era."""
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def connection_of(ctx: Context) -> Connection | None:
    """The connection that a request came on, if messages can be sent on it later."""
    # Private in mcp 2.3, whose handlers get a new session object with each request.
    connection: Connection | None = getattr(ctx.session, "_connection", None)
    return connection if connection is not None and connection.has_standalone_channel else None


@dataclass(eq=False)
class Call:
    """A client's request that is in flight on the other side."""

    ctx: Context
    caller: Caller
    parked: "ParkedCall | None" = None

    @property
    def is_waiting(self) -> bool:
        """Whether it is parked and its client has been told what input is required."""
        return self.parked is not None and self.parked.parked_at > 0

    def can_answer(self, capability: str) -> bool:
        """Whether its client has declared a capability."""
        return _can_answer(self.ctx, capability)


@dataclass(eq=False)
class ParkedCall:
    """A call whose client cannot be sent a request. It stays open while the client is told what input is required."""

    token: str
    result: "asyncio.Task[dict[str, Any]]"
    call: Call
    forget: Callable[[], object]
    """Called when no retry can resume the call any more."""
    may_wait: Callable[["ParkedCall"], bool]
    """Whether there is room for it among those that wait for their clients."""
    open: dict[str, "asyncio.Future[dict[str, Any]]"] = field(default_factory=dict)
    """Questions that are not answered yet."""
    told: set[str] = field(default_factory=set)
    """Those of them that the client knows of."""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    parked_at: float = 0.0
    """When the client was told what input is required (monotonic seconds); 0 while a request of it waits."""
    size_bytes: int = 0
    """How long its parameters are, once it has waited for its client."""

    async def ask(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Ask the client with its next answer, and wait for the retry that brings the input."""
        key = f"question-{len(self.requests) + 1}"
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.open[key] = future
        self.requests[key] = {"method": method, "params": dict(params or {})}
        self.changed.set()
        try:
            return await future
        finally:
            self.open.pop(key, None)

    def resume(self, responses: Mapping[str, Any]) -> None:
        """Hand on the input that the client sent."""
        for key, response in responses.items():
            future = self.open.get(key)
            if future is not None and not future.done() and isinstance(response, dict):
                future.set_result(response)

    def note_result(self) -> None:
        """Forget the call, unless its client has yet to come back: then the result waits for it."""
        if not self.parked_at or self.result.cancelled():
            self.forget()

    def _give_up(self, parked_at: float) -> None:
        """End the call if its client has not come back since it was told at `parked_at` what input is required."""
        if self.parked_at == parked_at:
            self.result.cancel()
            # If it is done already, nothing else would forget it.
            self.forget()

    async def next_answer(self) -> dict[str, Any]:
        """The result, or what input is required. Raises what the call raised."""
        while True:
            asked = [key for key, future in self.open.items() if not future.done()]
            if asked and not self.result.done():
                if not self.may_wait(self):
                    self.result.cancel()
                    raise MCPError(code=types.INTERNAL_ERROR, message=TOO_MANY_PARKED)
                self.parked_at = time.monotonic()
                asyncio.get_running_loop().call_later(PARKED_SECONDS, self._give_up, self.parked_at)
                return {
                    "resultType": "input_required",
                    "inputRequests": {key: self.requests[key] for key in asked},
                    "requestState": self.token,
                }
            self.changed.clear()
            changed = asyncio.ensure_future(self.changed.wait())
            try:
                await asyncio.wait({self.result, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if self.result.done():
                return self.result.result()


class Questions:
    """Who uses one link: the calls in flight and the sessions, and what the other side wants of them."""

    def __init__(self) -> None:
        self.calls: dict[Call, None] = {}
        """In flight, the oldest first."""
        self._connections: dict[Connection, tuple[Context, Caller]] = {}
        """Sessions with their newest request and their user, in the order in which they came."""
        self._subscriptions: dict[str, set[Connection]] = {}
        self._parked: dict[str, ParkedCall] = {}
        self.bus = InMemorySubscriptionBus()
        self.on_unsubscribed: Callable[[str], Awaitable[None]] | None = None
        """Called with a resource's URI when its last subscriber has left."""
        self.on_left: Callable[[], object] = lambda: None
        """Called when a session or a parked call has ended."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is using the link now."""
        return not self.calls and not self._connections and not self._parked

    # -- Who is there ------------------------------------------------------------------------------------------------

    def see(self, ctx: Context, caller: Caller) -> None:
        """Note the session that a request came on, and whose it is."""
        connection = connection_of(ctx)
        if connection is None or is_modern(ctx):
            return
        if connection not in self._connections:
            connection.exit_stack.callback(self._forget, connection)
        self._connections[connection] = ctx, caller

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        for uri, subscribers in list(self._subscriptions.items()):
            subscribers.discard(connection)
            if not subscribers:
                del self._subscriptions[uri]
                if self.on_unsubscribed is not None:
                    task = asyncio.ensure_future(self.on_unsubscribed(uri))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        self.on_left()

    def subscribe(self, ctx: Context, uri: str) -> bool:
        """Note that a session subscribes to a resource. Returns whether it is the first."""
        connection = connection_of(ctx)
        subscribers = self._subscriptions.setdefault(uri, set())
        is_first = not subscribers
        if connection is not None:
            subscribers.add(connection)
        return is_first

    def unsubscribe(self, ctx: Context, uri: str) -> bool:
        """Note that a session unsubscribes from a resource. Returns whether it was the last."""
        subscribers = self._subscriptions.get(uri, set())
        connection = connection_of(ctx)
        if connection is not None:
            subscribers.discard(connection)
        if not subscribers:
            self._subscriptions.pop(uri, None)
        return not subscribers

    @property
    def subscribed(self) -> list[str]:
        """The resources with a subscriber."""
        return list(self._subscriptions)

    # -- What the other side asks ------------------------------------------------------------------------------------

    async def answer(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Answer a request of the other side. Raises `MCPError` where nobody can."""
        if method == "ping":
            return {}
        if method not in _QUESTIONS:
            raise MCPError(code=types.METHOD_NOT_FOUND, message="Method not found", data=method)
        capability, kind = _QUESTIONS[method]
        if not self._is_of_one_user:
            message = "Calls of several users are in flight, and the question does not say whose it belongs to"
            raise MCPError(code=types.METHOD_NOT_FOUND, message=message, data=method)
        # A call whose client is being asked already waits for that; another question is rarely its own.
        calls = [call for call in self.calls if not call.is_waiting] or list(self.calls)
        if len(calls) != 1:
            for ctx, caller in reversed(list(self._connections.values())):
                if (not calls or caller == calls[0].caller) and _can_answer(ctx, capability):
                    return await _ask(ctx, kind, method, params, None)
        # Not an older call whose client could answer: it would be asked what somebody else's call needs.
        if calls and calls[-1].can_answer(capability):
            return await self._ask_call(calls[-1], kind, method, params)
        raise MCPError(code=types.METHOD_NOT_FOUND, message=f"The client does not support {capability}", data=method)

    @property
    def _is_of_one_user(self) -> bool:
        """Whether what the other side says outside of an answer can concern one user only."""
        calls = self.calls or [Call(ctx, caller) for ctx, caller in self._connections.values()]
        return len({call.caller for call in calls}) <= 1

    async def _ask_call(
        self, call: Call, kind: type[types.Request[Any, Any]], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if call.parked is not None:
            return await call.parked.ask(method, params)
        related = ServerMessageMetadata(related_request_id=call.ctx.request_id)
        return await _ask(call.ctx, kind, method, params, related)

    # -- Parked calls ------------------------------------------------------------------------------------------------

    def park(self, call: Call, result: "asyncio.Task[dict[str, Any]]") -> ParkedCall:
        """Make a call one that can be parked.

        Raises:
            MCPError: too many are parked.
        """
        if len(self._parked) >= MAX_PARKED:
            raise MCPError(code=types.INTERNAL_ERROR, message=TOO_MANY_PARKED)
        token = secrets.token_urlsafe(16)

        def forget() -> None:
            if self._parked.pop(token, None) is not None:
                self.on_left()

        parked = ParkedCall(token, result, call, forget, self._may_wait)
        call.parked = parked
        self._parked[token] = parked
        result.add_done_callback(lambda _: parked.note_result())
        return parked

    def _may_wait(self, parked: ParkedCall) -> bool:
        parked.size_bytes = parked.size_bytes or len(pydantic_core.to_json(parked.call.ctx.params))
        waiting = [other.size_bytes for other in self._parked.values() if other is not parked and other.parked_at]
        return not waiting or sum(waiting) + parked.size_bytes <= MAX_PARKED_BYTES

    def find_parked(self, token: object, ctx: Context, caller: Caller) -> ParkedCall:
        """The call that a retry resumes.

        Raises:
            MCPError: it is not waiting any more.
        """
        parked = self._parked.get(token) if isinstance(token, str) else None
        if parked is None or parked.call.caller != caller:
            raise MCPError(
                code=types.INVALID_PARAMS,
                message="This call does not wait for input any more. Call again without requestState.",
            )
        parked.parked_at = 0.0
        parked.call.ctx = ctx
        if parked.result.done():
            parked.forget()
        return parked

    def drop_parked(self) -> None:
        """End all parked calls."""
        for parked in list(self._parked.values()):
            parked.result.cancel()

    # -- What the other side tells -----------------------------------------------------------------------------------

    async def note(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Pass a notification of the other side on to those whom it concerns."""
        if method == "notifications/message":
            await self._log(params)
        elif method in _LIST_CHANGES:
            await self.announce(method)
        elif method == "notifications/resources/updated":
            uri = (params or {}).get("uri")
            if isinstance(uri, str):
                for connection in list(self._subscriptions.get(uri, ())):
                    await connection.notify(method, params)
                await self.bus.publish(ResourceUpdated(uri))
        elif method == "notifications/elicitation/complete":
            for connection in list(self._connections):
                await connection.notify(method, params)

    async def announce(self, method: str) -> None:
        """Tell all clients that a list has changed."""
        for connection in list(self._connections):
            await connection.notify(method, None)
        await self.bus.publish(_LIST_CHANGES[method]())

    async def _log(self, params: Mapping[str, Any] | None) -> None:
        if len(self.calls) == 1:
            ctx = next(iter(self.calls)).ctx
            if (params or {}).get("level") not in allowed_log_levels(ctx.protocol_version, ctx.meta):
                return
            try:
                notification = types.LoggingMessageNotification(
                    params=types.LoggingMessageNotificationParams.model_validate(params, by_name=False)
                )
            except ValidationError:
                return
            await ctx.session.send_notification(notification, related_request_id=ctx.request_id)
            return
        if self._is_of_one_user:
            for connection in list(self._connections):
                await connection.notify("notifications/message", params)


def _can_answer(ctx: Context, capability: str) -> bool:
    declared = ctx.session.client_capabilities
    return declared is not None and getattr(declared, capability, None) is not None


async def _ask(
    ctx: Context,
    kind: type[types.Request[Any, Any]],
    method: str,
    params: Mapping[str, Any] | None,
    related: ServerMessageMetadata | None,
) -> dict[str, Any]:
    """Ask a client of the handshake era. Raises `MCPError` where it cannot be asked."""
    try:
        request = kind.model_validate({"method": method, "params": params or {}}, by_name=False)
    except ValidationError:
        raise MCPError(code=types.INVALID_PARAMS, message="Invalid request parameters", data="") from None
    try:
        result = await ctx.session.send_request(request, _Anything, metadata=related)  # type: ignore[arg-type]
    except NoBackChannelError:
        raise MCPError(code=types.METHOD_NOT_FOUND, message="The client cannot be asked now", data=method) from None
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)
