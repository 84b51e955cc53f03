"""HTTP+SSE, the transport of 2024-11-05: one event stream down, one POST for each message up.

Lives here: the message loop of one session in its lane. Not here: HTTP (`consumers`), framing (`event_stream`).

Spec: 2024-11-05 basic/transports#http-with-sse. Where this differs from the SDK's `SseServerTransport` (mcp 2.3):

1. no sse-starlette and no memory streams between handler and socket: twice the calls for the same CPU time;
2. a request whose id is in flight, a second `initialize`, a batch, and ids the protocol forbids are refused;
3. the lifespan is the instance's, entered once, and not the connection's.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self

import anyio
from mcp.server.runner import serve_dual_era_loop, serve_loop
from mcp.shared.message import SessionMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gateway.exceptions import StreamClosed
from gateway.sessions import Session
from gateway.transports.announcements import list_changed_messages
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.link import Link
from gateway.transports.messages import JSONRPCMessage
from gateway.transports.responses import Scope
from gateway.transports.running_server import RunningServer

logger = logging.getLogger(__name__)


class Outbound:
    """What the server says: every message becomes an event on the session's one stream. Used in the lane."""

    def __init__(self, link: Link, stream: EventStream) -> None:
        self._link = link
        self._stream = stream

    async def send(self, item: SessionMessage, /) -> None:
        """Send one message; waits while the client is behind with reading.

        Raises:
            anyio.BrokenResourceError: the stream has ended.
        """
        message = item.message
        data = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        self._link.note_answer(message)
        self._stream.write(frame(b"message", data))
        if self._stream.must_wait:
            try:
                await self._stream.wait_for_room()
            except StreamClosed:
                raise anyio.BrokenResourceError from None

    async def aclose(self) -> None:
        """End the stream."""
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class SseTransport:
    """One HTTP+SSE session. Made, started and stopped on the host's loop; its message loop runs in the lane."""

    def __init__(self, running: RunningServer, session: Session, stream: EventStream, *, max_backlog: int) -> None:
        self._running = running
        self._session = session
        self._stream = stream
        self._link = Link(session, running.lane, max_backlog, stream.wait_for_room)
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Start the message loop."""
        self._running.lane.post(self._start_in_lane)

    def deliver(self, message: JSONRPCMessage, scope: Scope) -> None:
        """Hand over what the client posted. Raises what `Link.admit` raises."""
        self._link.admit(message, scope)

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed."""
        if self._session.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            self._running.lane.post(self._announce_in_lane)

    def _announce_in_lane(self) -> None:
        for message in list_changed_messages():
            self._link.note_answer(message)
            self._stream.write(frame(b"message", message.model_dump_json(exclude_unset=True).encode()))

    def stop(self) -> None:
        """End the message loop and cancel its handlers."""
        self._is_stopped = True
        self._running.lane.post(self._stop_in_lane)

    def _start_in_lane(self) -> None:
        if not self._is_stopped:
            self._task = self._running.lane.loop.create_task(self._serve(), context=self._running.context.copy())

    def _stop_in_lane(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        running = self._running
        outbound = Outbound(self._link, self._stream)
        # `serve_dual_era_loop` alone would do, but it relays every message of the session through one more task and
        # stream. What opens with `initialize` needs none of it.
        serve = serve_loop if await self._link.opens_with_handshake() else serve_dual_era_loop
        try:
            await serve(
                running.server,
                self._link.inbound,
                outbound,
                lifespan_state=running.lifespan_state,
                session_id=self._session.id,
                init_options=running.initialization_options,
            )
        except Exception:
            # The message loop is the SDK's and contains handlers itself; what gets here costs this session only.
            logger.exception("The message loop of an SSE session of %s failed", self._session.server_name)
        finally:
            self._stream.close()
