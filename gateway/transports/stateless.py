"""Streamable HTTP of 2026-07-28: every POST is complete in itself, and there are no sessions.

Lives here: handling one request in the instance's lane, from its checks to its answer. Not here: HTTP (`endpoints`),
and whether the answer is JSON or a stream (`reply`).

Spec: 2026-07-28 basic/transports/streamable-http. The steps, their order and their errors are those of the SDK's own
handler (mcp 2.3, `server/_streamable_http_modern.py`, which is private). They are made of the SDK's public parts. The
SDK's handler cannot be used: the public way to it, `StreamableHTTPSessionManager`, enters the server's lifespan once
more for each instance. It also spends three tasks and a memory stream on each request, whose work `Reply` does already.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import anyio
from mcp.server.connection import Connection
from mcp.server.runner import ServerRunner, aclose_shielded, modern_error_data
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundLadderRejection,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
    unsupported_protocol_version_rejection,
    validate_mcp_param_headers,
)
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import MessageMetadata, ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    ErrorData,
    JSONRPCNotification,
    JSONRPCRequest,
    ProgressToken,
    RequestId,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request

from gateway import metrics
from gateway.exceptions import GatewayError, StreamClosed
from gateway.http.asgi import Scope
from gateway.http.refusals import count_refusal
from gateway.http.requests import header
from gateway.instances.call_log import MAX_NAME_LENGTH, STATELESS, Conversation, current_conversation, note_answer_size
from gateway.instances.running_server import RunningServer
from gateway.jsonrpc import NOT_WRITABLE, error_body, is_request_id, json_body
from gateway.transports.announcements import listen_frames
from gateway.transports.event_stream import frame
from gateway.transports.message_budget import NOTHING_HELD, SMALL_OUTGOING_BYTES, WITHHELD, MessageMemory
from gateway.transports.reply import Answer, Reply

logger = logging.getLogger(__name__)

VERSION: Final = b"mcp-protocol-version"
"""The header that names a request's protocol version."""

LISTEN: Final = "subscriptions/listen"


class StatelessCall:
    """One request on its way through the lane. Made and ended on the host's loop."""

    def __init__(
        self,
        running: RunningServer,
        server_name: str,
        scope: Scope,
        body: Any,
        reply: Reply,
        *,
        is_listening: bool = False,
        memory: MessageMemory | None = None,
    ) -> None:
        """`body` is the decoded JSON. `is_listening`: the request goes on until its client or the host ends it.

        `memory`: what the request holds, until the response has been sent.
        """
        self.server_name = server_name
        self.is_listening = is_listening
        self._running = running
        self._scope = scope
        self._body = body
        self._reply = reply
        self._memory = memory
        self._count_out = metrics.message_counter(server_name, "out")
        self._request_id: RequestId | None = None
        self._task: asyncio.Task[None] | None = None
        """What handles the request. Set in the lane."""
        self._is_cancelled = self._is_cancelled_in_lane = False

    def start(self) -> None:
        """Start to handle the request."""
        self._running.lane.wakeups.send(self._start_in_lane)

    def cancel(self) -> None:
        """Cancel the handler. The client has closed the response, which cancels the request in this protocol.

        Spec 2026-07-28 basic/utilities/cancellation. A second call changes nothing, so that the handler can clean up.
        """
        if self._is_cancelled:
            return
        self._is_cancelled = True
        self._running.lane.post(self._cancel_in_lane)

    def end(self, error: GatewayError) -> None:
        """Cancel the handler, and answer with `error` unless the answer is a stream already."""
        status, body, headers = count_refusal(error, as_message=True)
        if not self._reply.answer(Answer(body, status, headers=headers)):
            self._reply.stream.cut()
        self.cancel()

    def announce(self) -> None:
        """Tell a client that listens that the server's lists may have changed, and end its request.

        The code that would notify the client is being replaced. Spec 2026-07-28: a client whose stream has ended
        listens again.
        """
        for chunk in listen_frames(self._body):
            self._reply.stream.write(chunk)
        self.stop_listening()

    def stop_listening(self) -> None:
        """End a `subscriptions/listen` request."""
        self._reply.open_stream()
        self._reply.close_stream()

    # -- In the lane -------------------------------------------------------------------------------------------------

    def _start_in_lane(self) -> None:
        self._task = self._running.lane.loop.create_task(self._serve(), context=self._running.context.copy())
        if self._is_cancelled_in_lane:
            self._cancel_task(self._task)

    def _cancel_in_lane(self) -> None:
        self._is_cancelled_in_lane = True
        if self._task is not None:
            self._cancel_task(self._task)

    def _cancel_task(self, task: asyncio.Task[None]) -> None:
        # Later, because a task that is cancelled before its first step never runs.
        self._running.lane.loop.call_soon(task.cancel)

    async def _serve(self) -> None:
        try:
            await self._handle()
        except Exception:
            logger.exception("A stateless request of %s failed", self.server_name)
            self._refuse(ErrorData(code=INTERNAL_ERROR, message="Internal server error"), status=500)
        finally:
            self._reply.close_stream()

    async def _handle(self) -> None:
        body = self._body
        if isinstance(body, dict) and "id" not in body:
            self._acknowledge(body)
            return
        try:
            request = JSONRPCRequest.model_validate(body)
        except ValidationError:
            # A batch, a response (which clients must not post in this protocol), or a malformed request.
            self._refuse(_NOT_A_MESSAGE)
            return
        if not is_request_id(request.id):
            self._refuse(_NOT_A_MESSAGE)
            return
        self._request_id = request.id
        headers = Headers(raw=list(self._scope["headers"]))
        route = await self._find_route(request, headers)
        if isinstance(route, InboundLadderRejection):
            self._refuse(ErrorData(code=route.code, message=route.message, data=route.data))
            return
        current_conversation.set(partial(_conversation, route))
        channel = _RequestChannel(
            self,
            TransportContext(kind="streamable-http", can_send_request=False, headers=headers),
            request.id,
            ServerMessageMetadata(request_context=Request(self._scope)),
            progress_token_from_params(request.params),
        )
        connection = Connection.from_envelope(route.protocol_version, route.client_info, route.client_capabilities)
        runner = ServerRunner(self._running.server, connection, self._running.lifespan_state)
        try:
            try:
                result = await runner.on_request(channel, request.method, request.params)
            finally:
                # The runner keeps this bound method of its own (`functools.cached_property`). Such a circle would wait
                # for the garbage collector, and the connection with it.
                vars(runner).pop("on_request", None)
                if _has_to_close(connection):
                    await aclose_shielded(connection)
        except Exception as error:
            # The SDK has a table of errors for this era. It logs others, and gives them a general message.
            self._refuse(modern_error_data(error))
            return
        if self._memory is not None and not self._memory.has_room_for(result):
            self._withhold()
            return
        try:
            data = json_body({"jsonrpc": "2.0", "id": request.id, "result": result})
        except ValueError as error:
            logger.warning("A result of %s cannot be written as JSON (%s)", self.server_name, type(error).__name__)
            self._refuse(ErrorData(code=INTERNAL_ERROR, message=NOT_WRITABLE))
        else:
            self._answer(data, 200)

    async def _find_route(
        self, request: JSONRPCRequest, headers: Headers
    ) -> InboundModernRoute | InboundLadderRejection:
        """Check the headers against the body, step by step, and return how to handle the request or why not."""
        # `Headers` looks through all lines and decodes them, each time that it is asked.
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.raw]
        duplicated = find_duplicated_routing_header(lines)
        if duplicated is not None:
            return InboundLadderRejection(code=HEADER_MISMATCH, message=f"{duplicated} header appears more than once")
        try:
            route = classify_inbound_request(self._body, headers=dict(lines))
            if isinstance(route, InboundModernRoute) and request.method == "tools/call":
                return await self._check_parameters(request.params or {}, headers) or route
        except ValueError:  # what the SDK (mcp 2.3) raises for =?base64?…?= with characters beyond ASCII in it
            return InboundLadderRejection(code=HEADER_MISMATCH, message="A header's base64 value cannot be decoded")
        return route

    async def _check_parameters(self, params: Mapping[str, Any], headers: Headers) -> InboundLadderRejection | None:
        """Compare `Mcp-Param-*` headers with the arguments, by the input schema of the called tool."""
        name, arguments = params.get("name"), params.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict | None):
            return None  # it is malformed, and the SDK will answer that
        await self._running.prepare_tool_schema(name)
        try:
            schema = self._running.server.get_tool_input_schema(name)  # type: ignore[misc]  # the proxy always has one
        except Exception:
            logger.exception("Mcp-Param headers of a call of %s go unchecked", self.server_name)
            return None
        return None if schema is None else validate_mcp_param_headers(schema, arguments or {}, headers)

    def _acknowledge(self, body: dict[str, Any]) -> None:
        """Answer a notification with 202 and drop it. In this protocol clients have nothing to notify a server of."""
        try:
            JSONRPCNotification.model_validate(body)
        except ValidationError:
            self._refuse(_NOT_A_MESSAGE)
            return
        unsupported = unsupported_protocol_version_rejection(header(self._scope, VERSION) or "")
        if unsupported is not None:
            error = ErrorData(code=unsupported.code, message=unsupported.message, data=unsupported.data)
            self._refuse(error)
        else:
            self._reply.answer(Answer(b"", 202))

    def _refuse(self, error: ErrorData, *, status: int | None = None) -> None:
        try:
            data = json_body({"jsonrpc": "2.0", "id": self._request_id, "error": error.model_dump(exclude_none=True)})
        except ValueError:
            data = error_body(error.code, error.message, self._request_id)
        self._answer(data, status or ERROR_CODE_HTTP_STATUS.get(error.code, 200))

    def _withhold(self) -> None:
        metrics.withheld_messages.labels(self.server_name).inc()
        self._refuse(ErrorData(code=INTERNAL_ERROR, message=WITHHELD))

    def _answer(self, data: bytes, status: int) -> None:
        if len(data) > SMALL_OUTGOING_BYTES and self._memory is not None and not self._memory.add_outgoing(len(data)):
            self._withhold()
            return
        self._count_out.inc()
        note_answer_size(len(data))
        if not self._reply.answer(Answer(data, status)):
            self._reply.stream.write(frame(b"message", data))

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Send a notification on the response, which makes it a stream."""
        self._count_out.inc()
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        data = json_body(message)
        with self._hold(len(data)) or NOTHING_HELD as memory:
            stream = self._reply.stream
            self._reply.open_stream()
            stream.write(frame(b"message", data), memory=memory)
        if stream.must_wait:
            # If the client has left or does not read, the request is cancelled, and this task with it.
            with contextlib.suppress(StreamClosed):
                await stream.wait_for_room()

    def _hold(self, size_bytes: int) -> MessageMemory | None:
        """The memory of a notification, if it is large. Raises `MCPError` if the client would hold too much."""
        if size_bytes <= SMALL_OUTGOING_BYTES or self._memory is None:
            return None
        memory = self._memory.hold_outgoing(size_bytes)
        if memory is None:
            metrics.withheld_messages.labels(self.server_name).inc()
            raise MCPError(code=INTERNAL_ERROR, message=WITHHELD)
        return memory


_NOT_A_MESSAGE = ErrorData(
    code=INVALID_REQUEST, message="Body must be a single JSON-RPC request or notification object"
)


def _has_to_close(connection: Connection) -> bool:
    """Whether the handler has left something to be closed at the end of its request.

    `serve_one` (mcp 2.3) closes in any case, which costs a call as much as two tasks do. Python has no public name for
    the question; if the private one should go, everything is closed.
    """
    return bool(getattr(connection.exit_stack, "_exit_callbacks", True))


def _conversation(route: InboundModernRoute) -> Conversation:
    """What is noted of a call: who the client says it is."""
    client = route.client_info
    name, version = (client.get("name"), client.get("version")) if isinstance(client, dict) else ("", "")
    return Conversation(STATELESS, route.protocol_version, _fact(name), _fact(version))


def _fact(value: object) -> str:
    return value[:MAX_NAME_LENGTH] if isinstance(value, str) else ""


@dataclass
class _RequestChannel:
    """The SDK's `DispatchContext` of one request: notifications go to its response, requests go nowhere."""

    _call: StatelessCall
    transport: TransportContext
    request_id: RequestId | None
    message_metadata: MessageMetadata
    progress_token: ProgressToken | None
    can_send_request: bool = False

    @cached_property
    def cancel_requested(self) -> anyio.Event:
        """Never set: a client cancels by closing the response, which cancels the handler's task. Rarely asked for."""
        return anyio.Event()

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        await self._call.notify(method, params)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.progress_token is not None:
            told = {"progressToken": self.progress_token, "progress": progress, "total": total, "message": message}
            params = {name: value for name, value in told.items() if value is not None}
            await self.notify("notifications/progress", params)


def is_stateless(protocol_version: str | None) -> bool:
    """Whether a POST with this `MCP-Protocol-Version` header belongs to the stateless protocol, unless it initializes.

    Unknown versions belong to it too: the answer lists the versions that are served. An empty header counts as none.
    """
    return bool(protocol_version) and protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS
