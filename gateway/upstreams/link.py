"""One conversation with the other side: a child process or a remote server.

Lives here: the handshake, requests and notifications in both directions, and its end. The other side is spoken to in
the handshake era (2025-11-25); a remote server that refuses that is spoken to in 2026-07-28. Not here: which caller
uses which link (`supply`), and what is done with what the other side asks (`questions`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Protocol

import anyio
from mcp.client._transport import TransportStreams
from mcp.shared.dispatcher import CallOptions, DispatchContext, ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, MCP_PROTOCOL_VERSION_HEADER, NAME_BEARING_METHODS
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    CONNECTION_CLOSED,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION

from gateway import __version__
from gateway.tracing.current import current_message
from gateway.upstreams.dispatcher import UpstreamDispatcher

logger = logging.getLogger(__name__)

CLIENT_INFO: Final = {"name": "gumcp", "version": __version__}

CAPABILITIES: Final[dict[str, Any]] = {
    "sampling": {},
    "elicitation": {"form": {}, "url": {}},
    "roots": {"listChanged": True},
}
"""Declared always: whether a caller's client has them is known only when the other side asks."""

_NO_TRACE: Final[Mapping[str, str]] = {}

Opener = Callable[[], AbstractAsyncContextManager[TransportStreams]]
"""Opens the streams to the other side; leaving it closes them."""

Answer = Callable[[str, Mapping[str, Any] | None], Awaitable[dict[str, Any]]]
"""Answers a request of the other side, given its method and parameters."""

Listen = Callable[[str, Mapping[str, Any] | None], Awaitable[None]]
"""Takes a notification of the other side, given its method and parameters."""


class OtherSide(Protocol):
    """Who takes what the other side sends."""

    async def answer(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Answer a request. Raises `MCPError` to answer with an error."""
        ...

    async def note(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Take a notification."""
        ...


class LinkClosed(Exception):
    """The conversation ended before it was opened."""


class _Started:
    """The SDK's `TaskStatus` of a dispatcher: tells when it can send."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def started(self, value: object = None) -> None:
        self.event.set()


class Link:
    """An initialized conversation. Used in one event loop."""

    def __init__(self, client: OtherSide) -> None:
        self._client = client
        self._dispatcher: UpstreamDispatcher | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = _Started()
        self._leaving = asyncio.Event()
        self._version = LATEST_HANDSHAKE_VERSION
        self._modern_version: str | None = None
        self._has_streams = False
        self._is_over = False
        """Whether the other side has closed its end. What belongs to it may still be stopping (`closed`)."""
        self.server: dict[str, Any] = {}
        """The other side's `initialize` result, or what `server/discover` said."""
        self.closed = asyncio.Event()
        """Set when the conversation has ended."""
        self.failure: BaseException | None = None
        """What ended it, if it was an error."""

    async def open(self, opener: Opener) -> None:
        """Open the streams and shake hands.

        Raises:
            LinkClosed: the other side ended before it answered; `failure` may say why.
            MCPError: it answered with an error.
        """
        self._task = asyncio.create_task(self._live(opener))
        started = asyncio.create_task(self._started.event.wait())
        try:
            await asyncio.wait({started, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not self._started.event.is_set():
                raise LinkClosed
            await self._shake_hands()
        except MCPError as error:
            if error.error.code == CONNECTION_CLOSED:
                raise LinkClosed from error
            raise
        finally:
            started.cancel()

    async def _live(self, opener: Opener) -> None:
        """Hold the streams open. They are opened and closed by one task, as their cancel scopes require."""
        try:
            async with opener() as (read, write):
                self._has_streams = True
                self._dispatcher = UpstreamDispatcher(read, write)
                running = asyncio.create_task(
                    self._dispatcher.run(self._on_request, self._on_notify, task_status=self._started)
                )
                leaving = asyncio.create_task(self._leaving.wait())
                try:
                    await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._is_over = True
                    leaving.cancel()
                    running.cancel()
                    await asyncio.wait({running})
                if not running.cancelled() and (error := running.exception()) is not None:
                    raise error
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a task group's, or the transport's: the conversation is over either way
            self.failure = error
        finally:
            self._is_over = True
            self.closed.set()

    async def _shake_hands(self) -> None:
        parameters = {
            "protocolVersion": LATEST_HANDSHAKE_VERSION,
            "capabilities": CAPABILITIES,
            "clientInfo": CLIENT_INFO,
        }
        assert self._dispatcher is not None
        try:
            self.server = await self._dispatcher.send_raw_request(
                "initialize", parameters, {"cancel_on_abandon": False}
            )
        except MCPError as error:
            if error.error.code != UNSUPPORTED_PROTOCOL_VERSION:
                raise
            self._modern_version = LATEST_MODERN_VERSION
            self.server = await self.request("server/discover", {})
            return
        version = self.server.get("protocolVersion")
        if version not in HANDSHAKE_PROTOCOL_VERSIONS:
            raise MCPError(
                code=UNSUPPORTED_PROTOCOL_VERSION,
                message="The server speaks an unknown protocol version.",
            )
        self._version = str(version)
        await self.notify("notifications/initialized", None)

    @property
    def is_modern(self) -> bool:
        """Whether the other side speaks 2026-07-28."""
        return self._modern_version is not None

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._dispatcher is not None and not self._is_over

    async def request(
        self, method: str, params: Mapping[str, Any] | None, on_progress: ProgressFnT | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for its result. Cancelling the wait cancels the request on the other side.

        Raises:
            MCPError: the other side answered with an error, or (`CONNECTION_CLOSED`) it has gone.
        """
        assert self._dispatcher is not None
        options: CallOptions = {}
        if on_progress is not None:
            options["on_progress"] = on_progress
        message = current_message.get()
        try:
            with nullcontext(_NO_TRACE) if message is None else message.sending(method) as trace:
                if trace:
                    params = {**(params or {}), "_meta": {**((params or {}).get("_meta") or {}), **trace}}
                sent = self._stamped(method, params, options)
                options["headers"] = {**(options.get("headers") or {}), **trace}
                return await self._dispatcher.send_raw_request(method, sent, options)
        except MCPError as error:
            self._is_over = self._is_over or error.error.code == CONNECTION_CLOSED
            raise

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Send a notification. It is dropped when the other side has gone."""
        assert self._dispatcher is not None
        options: CallOptions = {}
        if self._modern_version is None:
            await self._dispatcher.notify(method, self._stamped(method, params, options), options)

    def _stamped(self, method: str, params: Mapping[str, Any] | None, options: CallOptions) -> Mapping[str, Any] | None:
        """The parameters as the other side's era wants them, with the HTTP headers that go with them."""
        if self._modern_version is None:
            options["headers"] = {MCP_PROTOCOL_VERSION_HEADER: self._version}
            return params
        stamped = dict(params or {})
        stamped["_meta"] = {
            **(stamped.get("_meta") or {}),
            PROTOCOL_VERSION_META_KEY: self._modern_version,
            CLIENT_INFO_META_KEY: CLIENT_INFO,
            # What the other side asks comes back as `input_required`, which a client of this era answers itself.
            CLIENT_CAPABILITIES_META_KEY: CAPABILITIES,
        }
        headers = {MCP_PROTOCOL_VERSION_HEADER: self._modern_version, MCP_METHOD_HEADER: method}
        name = stamped.get(NAME_BEARING_METHODS.get(method, ""))
        if isinstance(name, str) and name.isascii() and name.isprintable():
            headers[MCP_NAME_HEADER] = name
        options["headers"] = headers
        return stamped

    async def close(self) -> None:
        """End the conversation and wait until the streams are closed."""
        self._leaving.set()
        if self._task is not None:
            if not self._has_streams:
                self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({self._task}, timeout=10)
            if not self._task.done():
                self._task.cancel()

    async def _on_request(
        self, context: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return await self._client.answer(method, params)

    async def _on_notify(
        self, context: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> None:
        await self._client.note(method, params)
