"""One instance's server, as its lane, the SDK and the transports see it.

A message loop lasts longer than a generation: it keeps the `ServerProxy`, and each request finds the newest code.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import Any, Final, Self, cast

from mcp.server import Server
from mcp.server._otel import OpenTelemetryMiddleware  # no public name in mcp 2.3, whose servers all have one
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

from gateway.access.error_redaction import redact_errors
from gateway.access.identity import Identity
from gateway.access.tool_scope import ToolScope
from gateway.catalog.definitions import ServerDefinition
from gateway.conf import conf
from gateway.exceptions import InstanceUnavailable
from gateway.instances.call_log import call_outcome, refused_call
from gateway.instances.caller_context import caller_context
from gateway.instances.calls import CallMiddleware, ServerCalls
from gateway.instances.dependencies import ServerDependencies
from gateway.instances.generation import Generation, current_generation
from gateway.instances.lanes import Lane
from gateway.instances.listings import list_items

logger = logging.getLogger(__name__)

TOO_SLOW: Final = "The server took too long to start for this user. Try again."


class RunningServer:
    """The server of one identity, alive in its lane: the generation in use, and how another one takes its place.

    Threads: made and used in the lane. `stop`, `retire`, `wait_stopped`, `is_lost`, `definition`, `lane` and `context`
    may be used in any thread.
    """

    __slots__ = (
        "_dependencies",
        "_generation",
        "_identity",
        "_is_let_go",
        "_replacing",
        "_switching",
        "context",
        "lane",
        "middleware",
        "server",
    )

    def __init__(
        self, generation: Generation, identity: Identity, lane: Lane, dependencies: ServerDependencies
    ) -> None:
        self.lane = lane
        self.context: Context = caller_context(generation.definition.name, identity)
        """The context variables that message loops and requests run with. Copy it for each of them."""
        self._identity = identity
        self._dependencies = dependencies
        self._generation = generation
        self.middleware = self._compose_middleware(generation)
        """What the SDK runs around each request."""
        self.server = cast("Server[Any]", ServerProxy(self))
        """What the SDK serves."""
        self._switching: asyncio.Lock | None = None
        self._replacing: asyncio.Task[Generation] | None = None
        self._is_let_go = False

    @classmethod
    async def start(
        cls, definition: ServerDefinition, identity: Identity, lane: Lane, dependencies: ServerDependencies
    ) -> Self:
        """Make the `Server` object and enter its lifespan. Call it in the lane.

        Raises:
            InstanceUnavailable: the factory, its options or the lifespan failed. The reason is in the log.
        """
        generation = await Generation.start(definition, identity, dependencies)
        return cls(generation, identity, lane, dependencies)

    # -- What transports read ----------------------------------------------------------------------------------------

    @property
    def generation(self) -> Generation:
        """The generation in use."""
        return self._generation

    @property
    def initialization_options(self) -> InitializationOptions:
        """What the module says of its server."""
        return self._generation.options

    @property
    def lifespan_state(self) -> Any:
        """What the lifespan yielded."""
        return self._generation.lifespan.state

    async def prepare_tool_schema(self, name: str) -> None:
        """Make sure that `server.get_tool_input_schema` knows tool `name`, if the tool exists."""
        await self._generation.schemas.prepare(name, self._list_tools, self._identity.api_key)

    async def _list_tools(self) -> Iterable[Mapping[str, Any]]:
        # Through the proxy: this listing has the same limits as one that a client asks for.
        return await list_items(self.server, self.lifespan_state, "tools")

    # -- New code, and a new start -----------------------------------------------------------------------------------

    @property
    def definition(self) -> ServerDefinition:
        """The code in use."""
        return self._generation.definition

    @property
    def is_lost(self) -> bool:
        """Whether the lifespan has ended by itself. The next request starts a new generation."""
        return self._generation.is_lost

    async def switch(self, definition: ServerDefinition) -> None:
        """Move to newer code. Requests that are being handled finish on the old code. Call it in the lane.

        Raises:
            InstanceUnavailable: the new code gave no server. The old code stays in use.
        """
        async with self._lock:
            await self._switch(definition)

    async def _switch(self, definition: ServerDefinition) -> None:
        generation = await Generation.start(definition, self._identity, self._dependencies)
        previous, self._generation = self._generation, generation
        self.middleware = self._compose_middleware(generation)
        previous.retire()

    @property
    def _lock(self) -> asyncio.Lock:
        """Held while a generation is made. Created on first use: most instances never need it."""
        self._switching = self._switching or asyncio.Lock()
        return self._switching

    async def _replace_lost(self) -> Generation:
        """The generation in use; a new one if that is lost.

        Raises:
            MCPError: no new one could be started. The next request tries again.
        """
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._ensure_generation(), context=self.context.copy())
            # Each waiter handles its failure. If none is left, nobody needs to.
            self._replacing.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(self._replacing)
        except InstanceUnavailable as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from None

    async def _ensure_generation(self) -> Generation:
        seconds = conf.factory_timeout_seconds
        try:
            async with asyncio.timeout(seconds), self._lock:
                if self.is_lost:
                    await self._switch(self.definition)
        except TimeoutError:
            logger.error("Server %s gave no instance within %s seconds", self.definition.name, seconds)
            raise InstanceUnavailable(TOO_SLOW) from None
        if self._is_let_go:
            self._generation.stop()
        return self._generation

    # -- The end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave the lifespan. What still uses the server is not waited for."""
        self._is_let_go = True
        self.lane.post(self._generation.stop)

    def retire(self) -> None:
        """Leave the lifespan as soon as no request is being handled, so that each can clean up."""
        self._is_let_go = True
        self.lane.post(self._generation.retire)

    async def wait_stopped(self, timeout_seconds: float) -> bool:
        """Wait until the lifespan has ended. Returns False if it takes longer, as in a lane that is blocked."""
        left: Future[None] = Future()
        if self.lane.post(self._generation.lifespan.tell_when_left, left):
            try:
                await asyncio.wait_for(asyncio.wrap_future(left), timeout_seconds)
            except TimeoutError:
                return False
        return True

    # -- Requests ----------------------------------------------------------------------------------------------------

    def _compose_middleware(self, generation: Generation) -> list[ServerMiddleware[Any]]:
        """The host's middleware and the server's own.

        It is added here and not to the server object, which stays as its author made it: several users may share it.
        """
        name, dependencies = generation.definition.name, self._dependencies
        keeps_sdk_spans = dependencies.tracing is None and _is_tracing()
        own = [added for added in generation.server.middleware if keeps_sdk_spans or not _is_for_tracing(added)]
        hosts: list[ServerMiddleware[Any]] = [
            *_tracing_of(dependencies),
            redact_errors,
            ToolScope(name, partial(_note_refusal, dependencies.calls)),
            partial(self._handle, generation),
            CallMiddleware(dependencies.calls, self._identity.user_id, generation.schemas),
        ]
        if not any(isinstance(middleware, RequestStateBoundary) for middleware in own):
            # Before the server's own middleware, so that it sees the state that it made. An author's own boundary is
            # left in place.
            hosts.append(RequestStateBoundary(dependencies.request_state, default_audience=name))
        return [*hosts, *own]

    async def _handle(
        self, generation: Generation, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Middleware: give a request the lifespan of `generation`. If that is lost, a new generation takes over."""
        if generation.is_lost:
            generation = await self._replace_lost()
        return await generation.handle(ctx, call_next)


class ServerProxy:
    """Stands for the `Server` object of the generation in use, for the SDK. Used in the lane."""

    __slots__ = ("_running",)

    def __init__(self, running: RunningServer) -> None:
        self._running = running

    @property
    def middleware(self) -> list[ServerMiddleware[Any]]:
        """What the SDK runs around each request."""
        return self._running.middleware

    @property
    def cache_hints(self) -> Mapping[str, CacheHint]:
        """What the server says of how long its results may be kept."""
        return self._running.generation.server.cache_hints

    @property
    def server_info_stamp(self) -> Any:
        """What results of 2026-07-28 say of the server."""
        return self._running.generation.server_info()

    def get_tool_input_schema(self, name: str) -> Mapping[str, Any] | None:
        """The schema that `Mcp-Param-*` headers are checked against: from the author's look-up or the last listing."""
        generation = self._running.generation
        look_up = generation.server.get_tool_input_schema
        return look_up(name) if look_up is not None else generation.schemas.get(name)

    def get_request_handler(self, method: str) -> Any:
        """The handler of the generation that handles the current request.

        The SDK (mcp 2.3) looks it up after all middleware. A switch may have happened since the request came in, and
        the handler of the new code must not run with the old lifespan.
        """
        return self._handling_server.get_request_handler(method)

    def get_notification_handler(self, method: str) -> Any:
        """The same for notifications."""
        return self._handling_server.get_notification_handler(method)

    @property
    def _handling_server(self) -> Server[Any]:
        return (current_generation() or self._running.generation).server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._running.generation.server, name)


def _note_refusal(calls: ServerCalls, identity: Identity, tool: object, reason: str) -> None:
    calls.log.note_refusal(refused_call(calls.server_name, tool, identity, reason))


def _tracing_of(dependencies: ServerDependencies) -> list[ServerMiddleware[Any]]:
    """The middleware that makes the host's spans, if there is tracing. It replaces the SDK's."""
    if dependencies.tracing is None:
        return []
    calls = dependencies.calls
    return [dependencies.tracing.middleware(calls.server_name, calls.tool_label, call_outcome)]


def _is_tracing() -> bool:
    """Whether somebody else has set up OpenTelemetry. Otherwise the SDK's spans go nowhere and cost 20 µs a call."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


def _is_for_tracing(middleware: ServerMiddleware[Any]) -> bool:
    return isinstance(middleware, OpenTelemetryMiddleware)
