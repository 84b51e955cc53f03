"""One generation of an instance: a `Server` object of one version of the module's code, and its lifespan.

Lives here: making the object and keeping its lifespan open, in the lane. Not here: which generation is in use
(`instances`), what its requests are allowed (`calls`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

from mcp.server import Server
from mcp.server._otel import OpenTelemetryMiddleware  # no public name in mcp 2.3, whose servers all have one
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

from gateway.access.error_redaction import redact_errors
from gateway.access.identity import Identity
from gateway.access.redaction import traceback_text
from gateway.access.tool_scope import ToolScope
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.factories import make
from gateway.compat.server import CompatServer
from gateway.instances.calls import CallMiddleware, ServerCalls
from gateway.instances.tool_schemas import ToolSchemas

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the host gives to every generation of one server."""

    calls: ServerCalls
    request_state: RequestStateSecurity


class Generation:
    """A `Server` object whose lifespan is open. Used in its lane only, except for `ended` and `is_lost`."""

    def __init__(
        self, definition: ServerDefinition, identity: Identity, server: Server[Any], options: InitializationOptions
    ) -> None:
        self.definition = definition
        self._api_key = identity.api_key
        self.server = server
        self.options = options
        self.lifespan_state: Any = None
        self.schemas = ToolSchemas(server, None, self._api_key)
        self.ended: Future[None] = Future()
        """Done when the lifespan has been left."""
        self.on_end: Callable[[], object] = lambda: None
        """Called in the lane when the lifespan has been left."""
        self.is_lost = False
        """Whether the lifespan ended by itself, so that its state is of no use any more. Read in any thread."""
        self.replacement: Callable[[], Awaitable[Generation]] | None = None
        """Gives the generation that is used in place of one that is lost. Called in the lane."""
        self._requests = 0
        self._is_retired = False
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, definition: ServerDefinition, identity: Identity) -> "Generation":
        """Make the `Server` object and enter its lifespan. Raises whatever the module's code raises."""
        server, options = await make(definition.style, identity.user_id, identity.key_for_factory)
        # The SDK reports the Server object's own name and version on the wire that has no options.
        server.name, server.version = options.server_name, options.server_version
        generation = cls(definition, identity, server, options)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        generation._life = asyncio.create_task(generation._live(started))
        try:
            await started
        except asyncio.CancelledError:
            generation._life.cancel()
            raise
        return generation

    async def _live(self, started: "asyncio.Future[None]") -> None:
        """Hold the lifespan open until `stop`, or until it ends by itself: it is entered and left by the same task."""
        try:
            async with self.server.lifespan(self.server) as self.lifespan_state:
                self.schemas = ToolSchemas(self.server, self.lifespan_state, self._api_key)
                if not started.done():
                    started.set_result(None)
                try:
                    await self._stopping.wait()
                finally:
                    self.is_lost = not self._stopping.is_set()
        except asyncio.CancelledError:
            raise
        # Foreign code: what it raises costs this instance and nothing else.
        except BaseException as error:
            if not started.done():
                started.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            else:
                text = traceback_text(error, self._api_key)
                how = "ended by itself, and is entered anew with the next use" if self.is_lost else "failed as it ended"
                logger.error("The lifespan of an instance of %s %s: %s", self.definition.name, how, text)
        finally:
            self.on_end()
            with suppress(InvalidStateError):  # somebody's wait for it was cancelled, and it with that
                self.ended.set_result(None)

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware: give a request this generation's lifespan, and stay open while it is handled.

        Where that is lost the request gets the replacement's, with its handlers.
        """
        if self.is_lost and self.replacement is not None:
            return await (await self.replacement())._handle(ctx, call_next)
        return await self._handle(ctx, call_next)

    async def _handle(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        self._requests += 1
        token = _handling.set(self)
        try:
            if ctx.lifespan_context is not self.lifespan_state:  # the message loop was started on older code
                ctx = replace(ctx, lifespan_context=self.lifespan_state)
            return await call_next(ctx)
        finally:
            _handling.reset(token)
            self._requests -= 1
            if self._is_retired and not self._requests:
                self.stop()

    def retire(self) -> None:
        """Stop as soon as the requests in flight are done."""
        self._is_retired = True
        if not self._requests:
            self.stop()

    def stop(self) -> None:
        """Leave the lifespan. What still runs is not waited for."""
        self._stopping.set()


def _is_tracing() -> bool:
    """Whether somebody has set OpenTelemetry up; until then its spans go nowhere, at 20 µs a call."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


def _is_for_tracing(middleware: ServerMiddleware[Any]) -> bool:
    return isinstance(middleware, OpenTelemetryMiddleware)


class ServerFront:
    """Stands for the `Server` object of the generation in use, towards the SDK.

    A message loop lasts longer than a generation: it keeps this, and each request finds the newest code. What the host
    adds to a server is added here, so that an object which several users share stays as its author made it.
    """

    def __init__(self, generation: Generation, user_id: str, surroundings: Surroundings) -> None:
        self._user_id = user_id
        self._surroundings = surroundings
        self.switch(generation)

    def switch(self, generation: Generation) -> None:
        """Use `generation` from the next request on."""
        server, surroundings = generation.server, self._surroundings
        if isinstance(server, CompatServer):
            threads = server.handler_threads = surroundings.calls.hold_threads()
            generation.on_end = lambda: surroundings.calls.release_threads(threads)
        own = [middleware for middleware in server.middleware if _is_tracing() or not _is_for_tracing(middleware)]
        added: list[ServerMiddleware[Any]] = [
            redact_errors,
            ToolScope(generation.definition.name),
            generation,
            CallMiddleware(surroundings.calls, self._user_id, generation.schemas),
        ]
        if not any(isinstance(middleware, RequestStateBoundary) for middleware in own):
            # Before the server's own, so that they see the state which they minted. An author's own boundary stands.
            added.append(RequestStateBoundary(surroundings.request_state, default_audience=generation.definition.name))
        self.middleware = [*added, *own]
        self._server = server
        self._schemas = generation.schemas
        # Listing tools before a call is held to the same limits as when a client asks for it.
        self._schemas.server = cast("Server[Any]", self)

    def get_tool_input_schema(self, name: str) -> Mapping[str, Any] | None:
        """What `Mcp-Param-*` headers are checked against: the author's look-up, or what the server has listed."""
        look_up = self._server.get_tool_input_schema
        return look_up(name) if look_up is not None else self._schemas.get(name)

    def get_request_handler(self, method: str) -> Any:
        """The handler of the generation whose turn the request is, which is looked up after all middleware (mcp 2.3).

        A switch may have come between: its new handler must not run with the old lifespan.
        """
        generation = _handling.get(None)
        server = self._server if generation is None else generation.server
        return server.get_request_handler(method)

    def get_notification_handler(self, method: str) -> Any:
        """As `get_request_handler`."""
        generation = _handling.get(None)
        server = self._server if generation is None else generation.server
        return server.get_notification_handler(method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


_handling: ContextVar[Generation] = ContextVar("_handling")
"""The generation that handles the current request."""
