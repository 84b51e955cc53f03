"""HTTP+SSE, the transport of 2024-11-05: one event stream down, one POST for each message up.

Lives here: one session and its stream. Not here: HTTP (`endpoints.consumers`, `endpoints.sse_messages`), the format of
events (`event_stream`), running the server (`message_loop`).

Spec: 2024-11-05 basic/transports#http-with-sse. Differences from the SDK's `SseServerTransport` (mcp 2.3):

1. There is no sse-starlette and there are no memory streams between handler and socket: twice the calls for the same
   CPU time.
2. A request whose id is in flight, a second `initialize` and ids that the protocol forbids are refused.
3. The lifespan belongs to the instance, which enters it once, and not to the connection.
"""

import asyncio
from typing import Any, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCRequest, JSONRPCResponse, RequestId
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gateway.exceptions import GatewayError, MessageTooLarge, StreamClosed
from gateway.http.asgi import Scope
from gateway.http.refusals import count_refusal
from gateway.instances.running_server import RunningServer
from gateway.jsonrpc import ANSWERS, INITIALIZE, Batch, JSONRPCMessage, message_body
from gateway.transports.announcements import list_changed_messages
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.link import Link
from gateway.transports.message_budget import NOTHING_HELD, MessageMemory
from gateway.transports.message_loop import MessageLoop
from gateway.transports.sessions import Session

MAX_OPENING_BYTES: Final = 256 * 1024
"""What a message may hold while the server has not answered one. The SDK (mcp 2.3, `serve_dual_era_loop`) keeps the
first request of a stream that does not begin with `initialize`, and what came before it, as long as the stream."""


class SseTransport:
    """The wire of one HTTP+SSE session.

    Threads: `_write`, `_answer` and `_announce_in_lane` run in the lane, everything else on the host's loop.
    """

    def __init__(self, running: RunningServer, session: Session[Any], stream: EventStream, *, max_backlog: int) -> None:
        self._lane = running.lane
        self._session = session
        self._stream = stream
        self._link = Link(session, running.lane, max_backlog, stream.wait_for_room, lambda: stream.must_wait)
        self._loop = MessageLoop(
            running, self._link, self._write, self._answer, on_end=stream.close, takes_stateless=True
        )

    def start(self) -> None:
        """Start the message loop."""
        self._loop.start()

    def stop(self) -> None:
        """Cancel what runs for the session and end its stream."""
        self._loop.stop()
        self._stream.cut()

    @property
    def is_flushed(self) -> bool:
        """Whether everything the server sent has been handed to the ASGI server."""
        return self._stream.is_flushed

    def deliver(self, message: JSONRPCMessage, scope: Scope, memory: MessageMemory) -> None:
        """Hand a message to the server; an answer goes to the stream.

        Raises `MessageTooLarge`, and what `Link.admit` raises.
        """
        if not self._session.is_established and memory.size_bytes > MAX_OPENING_BYTES and not _is_initialize(message):
            raise MessageTooLarge("The first message of a stream must be short, unless it is initialize.")
        self._link.admit(message, scope, memory)

    def deliver_batch(self, batch: Batch, scope: Scope, memory: MessageMemory) -> None:
        """Hand the messages of a batch to the server. Every answer is an event of its own, an error too."""
        for refusal in batch.refusals:
            self._stream.write(frame(b"message", refusal))
        for message in batch.messages:
            try:
                self._link.admit(message, scope, memory)
            except GatewayError as error:
                if isinstance(message, JSONRPCRequest):
                    _, body, _ = count_refusal(error, as_message=True, request_id=message.id)
                    self._stream.write(frame(b"message", body))

    def ask(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory) -> "asyncio.Future[bool]":
        """Send a request of the host itself, whose answer no client sees. Raises what `deliver` raises."""
        return self._link.ask(message, scope, memory)

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed."""
        if self._session.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            self._lane.post(self._announce_in_lane)

    def _announce_in_lane(self) -> None:
        for message in list_changed_messages():
            self._link.note_sent()
            self._stream.write(frame(b"message", message.model_dump_json(exclude_unset=True).encode()))

    async def _write(self, item: SessionMessage) -> None:
        message = item.message
        data = message_body(message)
        if isinstance(message, ANSWERS) and message.id is not None:
            self._answer(message.id, message.result if isinstance(message, JSONRPCResponse) else None, data)
            return
        with self._link.weigh(data) or NOTHING_HELD as memory:
            self._link.note_sent()
            self._stream.write(frame(b"message", data), memory=memory)
        if self._stream.must_wait:
            try:
                await self._stream.wait_for_room()
            except StreamClosed:
                raise anyio.BrokenResourceError from None

    def _answer(self, request_id: RequestId, result: dict[str, Any] | None, data: bytes) -> None:
        # It does not wait for room, where it would be held twice: nothing follows it, and the session takes no more
        # messages until there is room.
        data, memory = self._link.weigh_answer(request_id, data)
        with memory or NOTHING_HELD:
            if self._link.settle(request_id, result, len(data)):
                self._stream.write(frame(b"message", data), memory=memory)


def _is_initialize(message: JSONRPCMessage) -> bool:
    return isinstance(message, JSONRPCRequest) and message.method == INITIALIZE
