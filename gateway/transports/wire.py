"""The wire of a session: what carries its messages between the client and whatever runs the server.

Lives here: the protocols. Today a wire leads to a lane of this process (`sse`, `streamable_http`); one that leads to
another process would implement the same methods.
"""

import asyncio
from typing import Protocol

from mcp_types import JSONRPCRequest

from gateway.http.asgi import Scope
from gateway.jsonrpc import Batch, JSONRPCMessage
from gateway.transports.event_stream import EventStream
from gateway.transports.message_budget import MessageMemory
from gateway.transports.reply import Reply


class SessionWire(Protocol):
    """Carries the messages of one session. Every method is called on the host's loop and returns at once."""

    @property
    def is_flushed(self) -> bool:
        """Whether everything the server sent outside of a call's answer has been handed to the ASGI server."""
        ...

    def deliver(self, message: JSONRPCMessage, scope: Scope, memory: MessageMemory) -> None:
        """Hand `message` to the server and hold `memory` until it is answered.

        The answer is not sent in the response to the request that carried the message.

        Raises:
            GatewayError: the server did not get the message.
        """
        ...

    def ask(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory) -> "asyncio.Future[bool]":
        """Send a request of the host itself, whose answer no client sees. The result tells whether it was accepted.

        Raises what `deliver` raises.
        """
        ...

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed."""
        ...

    def stop(self) -> None:
        """Cancel what runs for the session and end its streams. Called once."""
        ...


class SseWire(SessionWire, Protocol):
    """Carries the messages of an HTTP+SSE session."""

    def deliver_batch(self, batch: Batch, scope: Scope, memory: MessageMemory) -> None:
        """Hand the messages of a batch to the server. Answers go to the stream, errors too."""
        ...


class StreamableHttpWire(SessionWire, Protocol):
    """Carries the messages of a Streamable HTTP session."""

    @property
    def is_established(self) -> bool:
        """Whether the server has accepted `initialize`."""
        ...

    def call(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory, reply: Reply) -> None:
        """Hand a request to the server; the answer goes to `reply`. Raises what `deliver` raises."""
        ...

    def call_batch(self, batch: Batch, scope: Scope, memory: MessageMemory, reply: Reply) -> bool:
        """Hand the messages of a batch to the server; the answers go to `reply`. False if there will be none."""
        ...

    async def attach_standalone(self, stream: EventStream) -> bool:
        """Make `stream` the session's standalone stream. False if the session has one already."""
        ...

    async def resume(self, stream: EventStream, last_event_id: str) -> bool:
        """Continue on `stream` after the event that the client read last. False if that is not possible."""
        ...
