"""Streamable HTTP of 2026-07-28: every POST is complete in itself, there are no sessions.

Lives here: driving the SDK's handler for one such request in the instance's lane, and its answer on the way back.

Spec: 2026-07-28 basic/transports/streamable-http. The SDK's handler is private in mcp 2.3 (the version is pinned): the
public way to it, `StreamableHTTPSessionManager`, would enter the server's lifespan a second time for each instance.
"""

import asyncio
import contextlib
import logging
from collections import deque
from concurrent.futures import Future

from mcp.server._streamable_http_modern import handle_modern_request
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gateway import metrics
from gateway.exceptions import StreamClosed
from gateway.transports.announcements import listen_frames
from gateway.transports.exchange import Answer, Exchange
from gateway.transports.responses import Message, Scope, header
from gateway.transports.running_server import RunningServer

logger = logging.getLogger(__name__)


class StatelessCall:
    """One request on its way through the lane. Made and cancelled on the host's loop."""

    def __init__(self, running: RunningServer, server_name: str, scope: Scope, body: bytes, exchange: Exchange) -> None:
        self._running = running
        self._server_name = server_name
        self._scope = scope
        self._exchange = exchange
        self._body = body
        self._incoming: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])
        self._start: Message = {}
        self._task: Future[asyncio.Task[None]] = Future()

    def start(self) -> None:
        """Start to handle the request."""
        self._running.lane.post(self._start_in_lane)

    def cancel(self) -> None:
        """Cancel the handler: the client closed the response, which in this protocol means that it cancels.

        Spec 2026-07-28 basic/utilities/cancellation.
        """
        self._task.add_done_callback(lambda task: self._running.lane.post(task.result().cancel))

    def announce(self) -> None:
        """Tell the client of a `subscriptions/listen` request that the server's lists may have changed, and end it.

        It listens to code that is going away. Spec 2026-07-28: a client whose stream ended listens again.
        """
        stream = self._exchange.stream
        for chunk in listen_frames(self._body):
            stream.write(chunk)
        stream.close()

    def _start_in_lane(self) -> None:
        context = self._running.context.copy()
        self._task.set_result(self._running.lane.loop.create_task(self._serve(), context=context))

    async def _serve(self) -> None:
        try:
            if header(self._scope, b"mcp-method") == "tools/call":
                await self._running.schemas.prepare(header(self._scope, b"mcp-name") or "")
            await handle_modern_request(
                self._running.server, None, False, self._running.lifespan_state, self._scope, self._receive, self._send
            )
        except Exception:
            logger.exception("A stateless request of %s failed", self._server_name)
            self._exchange.answer(Answer(b'{"error": "Internal server error"}', status=500))
        finally:
            self._exchange.stream.close()

    async def _receive(self) -> Message:
        if self._incoming:
            return self._incoming.popleft()
        # A disconnect arrives as the cancellation of this task.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        metrics.messages.labels(self._server_name, "out").inc()
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if is_last and self._exchange.answer(self._whole(body)):
            return
        stream = self._exchange.stream
        self._exchange.open_stream()
        if body.startswith(b"{"):
            # The SDK chose JSON, the exchange had become a stream meanwhile: silence lasted too long.
            body = b"event: message\r\ndata: %b\r\n\r\n" % body
        stream.write(body)
        if is_last:
            stream.close()
        elif stream.is_full:
            # A client that has gone or does not read ends the exchange, and with it this task.
            with contextlib.suppress(StreamClosed):
                await stream.wait_for_room()

    def _whole(self, body: bytes) -> Answer:
        content_type = b"application/json"
        headers: list[tuple[bytes, bytes]] = []
        for name, value in self._start["headers"]:
            if name == b"content-type":
                content_type = value
            elif name != b"content-length":
                headers.append((name, value))
        return Answer(body, self._start["status"], content_type, headers)


def is_stateless(protocol_version: str | None) -> bool:
    """Whether a request with this `MCP-Protocol-Version` header belongs to the stateless protocol.

    Versions that nobody knows do too: the SDK answers those with the list of what it speaks.
    """
    return protocol_version is not None and protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS
