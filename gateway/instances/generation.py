"""One generation of an instance: a `Server` object made by one version of the module's code, and its lifespan.

Lives here: making the object, and keeping its lifespan open while its requests are handled. Not here: which generation
is in use (`running_server`), and the limits of its requests (`calls`).
"""

import asyncio
import logging
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from mcp.server import Server
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.models import InitializationOptions

from gateway.access.identity import Identity, current_identity
from gateway.access.redaction import traceback_text
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.factories import make
from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.server import CompatServer
from gateway.exceptions import InstanceUnavailable
from gateway.instances.dependencies import ServerDependencies
from gateway.instances.lifespan import OpenLifespan
from gateway.instances.tool_schemas import ToolSchemas
from gateway.jsonrpc import json_body, require_json

logger = logging.getLogger(__name__)

UNAVAILABLE: Final = "The server could not be started for this user. Its operator finds the reason in the log."


class Generation:
    """A `Server` object whose lifespan is open.

    Threads: used in the lane, except for `definition` and `is_lost`, which any thread may read.
    """

    __slots__ = ("_is_retired", "_requests", "_server_info", "definition", "lifespan", "options", "schemas", "server")

    def __init__(
        self,
        definition: ServerDefinition,
        server: Server[Any],
        options: InitializationOptions,
        lifespan: OpenLifespan,
    ) -> None:
        self.definition = definition
        self.server = server
        self.options = options
        self.lifespan = lifespan
        self.schemas = ToolSchemas()
        self._requests = 0
        self._is_retired = False
        self._server_info = b""
        """What results of 2026-07-28 say of the server, as JSON. Made when it is first asked for."""

    @classmethod
    async def start(
        cls, definition: ServerDefinition, identity: Identity, dependencies: ServerDependencies
    ) -> "Generation":
        """Make the `Server` object and enter its lifespan.

        Raises:
            InstanceUnavailable: the factory, its options or the lifespan failed. The reason is in the log.
        """
        # A reload has no caller, and a new start may be caused by another one. This makes log redaction know this key.
        current_identity.set(identity)
        try:
            with dependencies.calls.noting("the factory"):
                return await cls._start(definition, identity, dependencies)
        except asyncio.CancelledError:
            raise
        except InstanceUnavailable:
            raise  # the host's own factories: the message is for callers, and the reason is in the log
        # The server's own code may raise anything. It affects this caller only.
        except BaseException as error:
            text = traceback_text(error, identity.api_key)
            logger.error("Server %s gave no instance: %s", definition.name, text)
            raise InstanceUnavailable(UNAVAILABLE) from None

    @classmethod
    async def _start(
        cls, definition: ServerDefinition, identity: Identity, dependencies: ServerDependencies
    ) -> "Generation":
        threads = dependencies.calls.threads.hold()
        try:
            server, options = await _make(definition, identity, threads)
        except BaseException:
            dependencies.calls.threads.release(threads)
            raise
        # Without a handshake no options are sent: the SDK reports the Server object's own name and version.
        server.name, server.version = options.server_name, options.server_version
        lifespan = await OpenLifespan.enter(
            server, definition.name, identity.api_key, on_left=lambda: dependencies.calls.threads.release(threads)
        )
        return cls(definition, server, dependencies.share_options(options), lifespan)

    @property
    def is_lost(self) -> bool:
        """Whether the lifespan ended by itself, so that its state cannot be used any more."""
        return self.lifespan.is_lost

    def server_info(self) -> Any:
        """What results of 2026-07-28 say of the server. A new object each time: it becomes a part of the result."""
        # The SDK (mcp 2.3) makes a deep copy of the same, which takes seven times as long.
        if not self._server_info:
            self._server_info = json_body(self.server.server_info_stamp)
        return require_json(self._server_info)

    async def handle(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one request with this generation's lifespan, and keep that open meanwhile."""
        self._requests += 1
        token = _handling.set(self)
        try:
            if ctx.lifespan_context is not self.lifespan.state:  # the message loop was started on older code
                ctx = replace(ctx, lifespan_context=self.lifespan.state)
            return await call_next(ctx)
        finally:
            _handling.reset(token)
            self._requests -= 1
            if self._is_retired and not self._requests:
                self.stop()

    def retire(self) -> None:
        """Leave the lifespan as soon as the requests in flight are done."""
        self._is_retired = True
        if not self._requests:
            self.stop()

    def stop(self) -> None:
        """Leave the lifespan. What still uses it is not waited for."""
        self.lifespan.leave()


async def _make(
    definition: ServerDefinition, identity: Identity, threads: HandlerThreads
) -> tuple[Server[Any], InitializationOptions]:
    """Make the `Server` object, and give a version 1 server the threads that run its handlers."""
    style = definition.style

    async def call_factory() -> tuple[Server[Any], InitializationOptions]:
        return await make(style, identity.user_id, identity.api_key)

    # What a version 1 factory makes may be bound to the loop that it is made on: that must be the handlers' loop.
    server, options = await (threads.run(call_factory) if style.is_version_1 else call_factory())
    if isinstance(server, CompatServer):
        server.handler_threads = threads
    return server, options


_handling: ContextVar[Generation] = ContextVar("_handling")


def current_generation() -> Generation | None:
    """The generation that handles the current request."""
    return _handling.get(None)
