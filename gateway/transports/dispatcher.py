"""Dispatches the messages of one session: a request gets a task of its own, all others go to the SDK's dispatcher.

The SDK's `JSONRPCDispatcher` (mcp 2.3) spends a place in a task group, a cancel scope, an event and one more turn of
the loop on each request. Here a request is a plain task. What is rare stays with the SDK: `initialize`, notifications,
answers of the client, and everything that the server sends of its own accord.

Spec: 2025-11-25 basic/utilities/cancellation, basic/utilities/progress.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.abc
from mcp.shared.dispatcher import CallOptions, OnNotify, OnNotifyIntercept, OnRequest, coerce_request_id
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.jsonrpc_dispatcher import (
    JSONRPCDispatcher,
    cancelled_request_id_from_params,
    handler_exception_to_error_data,
    progress_token_from_params,
)
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CONNECTION_CLOSED,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    ProgressToken,
    RequestId,
)

from gateway.jsonrpc import INITIALIZE, message_body, result_body
from gateway.transports.link import Inbound, MessageStream

logger = logging.getLogger(__name__)

WriteMessage = Callable[[SessionMessage], Coroutine[Any, Any, None]]
"""Sends one message of the server, and waits while the client is slow to read. Called in the lane.

Raises anyio.BrokenResourceError if nobody can be reached any more.
"""

SendAnswer = Callable[[RequestId, dict[str, Any] | None, bytes], None]
"""Sends the answer to a request: its id, its result or None for an error, and the answer as bytes. Called in the lane.

Most messages are answers. They do not wait for a client that is slow to read.
"""

CANCELLED: Final = "notifications/cancelled"

_HANDLED: Final = JSONRPCNotification(jsonrpc="2.0", method="")
"""Takes the place of a message that was handled."""

_TRANSPORT: Final = TransportContext(kind="jsonrpc", can_send_request=True)
"""What the SDK's dispatcher says of a transport that says nothing of itself."""

_related_request_id: Final[ContextVar[RequestId | None]] = ContextVar("related_request_id", default=None)
"""The request for whose handler the SDK's dispatcher is sending something."""


class Outbound:
    """The stream that the message loop writes to. Closing it does nothing: the transport ends its own streams."""

    def __init__(self, write: WriteMessage) -> None:
        self._write = write

    async def send(self, item: SessionMessage) -> None:
        """Send one message, on the stream of the request that it belongs to."""
        related = _related_request_id.get()
        if related is not None:
            item.metadata = ServerMessageMetadata(related_request_id=related)
        await self._write(item)

    async def aclose(self) -> None:
        """Do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class SessionDispatcher:
    """The SDK's `Dispatcher` of one session that begins with `initialize`. Used in the lane."""

    def __init__(
        self,
        inbound: Inbound,
        write: WriteMessage,
        answer: SendAnswer,
        withhold: Callable[[RequestId, dict[str, Any]], bytes | None],
    ) -> None:
        """`withhold` returns the error to send in place of a result that must not be sent."""
        self._inbound = inbound
        self._answer = answer
        self._withhold = withhold
        self._others: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(
            _OtherMessages(inbound, self._handle_here),
            Outbound(write),
            # As in the SDK's `serve_loop`: a client that sends its next request together with `initialize` finds the
            # session initialized.
            inline_methods=frozenset({INITIALIZE}),
        )
        self._in_flight: dict[RequestId, _RequestContext] = {}
        """The requests whose handlers run."""
        self._tasks: set[asyncio.Task[None]] = set()
        """The same, and those whose answers are being written."""
        self._start: Callable[[JSONRPCRequest, ServerMessageMetadata], None]

    async def run(
        self,
        on_request: OnRequest,
        on_notify: OnNotify,
        on_notify_intercept: OnNotifyIntercept | None = None,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Dispatch messages until the client's stream is closed. Then cancel what runs."""
        context, create_task = copy_context(), asyncio.get_running_loop().create_task

        def start(request: JSONRPCRequest, metadata: ServerMessageMetadata) -> None:
            request_context = _RequestContext(self._others, request, metadata)
            self._in_flight[request_context.key] = request_context
            task = create_task(self._handle(request, request_context, on_request), context=context.copy())
            request_context.task = task
            self._tasks.add(task)

        self._start = start
        self._inbound.take_at_once = self._take_request
        try:
            await self._others.run(on_request, on_notify, on_notify_intercept, task_status=task_status)
        finally:
            self._inbound.take_at_once = None
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client something that belongs to none of its requests. Raises what the SDK's dispatcher raises."""
        return await self._others.send_raw_request(method, params, opts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Notify the client of something that belongs to none of its requests."""
        await self._others.notify(method, params, opts)

    def _take_request(self, item: SessionMessage) -> bool:
        """Start to handle `item` if it is a request. Returns False if the message loop has to take it."""
        message = item.message
        if not isinstance(message, JSONRPCRequest) or message.method == INITIALIZE:
            return False
        assert isinstance(item.metadata, ServerMessageMetadata)
        self._start(message, item.metadata)
        return True

    def _handle_here(self, item: SessionMessage) -> bool:
        """The same for the message loop, which also brings what cancels a request."""
        if self._take_request(item):
            return True
        message = item.message
        if isinstance(message, JSONRPCNotification) and message.method == CANCELLED:
            request_id = cancelled_request_id_from_params(message.params)
            context = None if request_id is None else self._in_flight.get(coerce_request_id(request_id))
            if context is not None:
                context.cancel()
        return False

    async def _handle(self, request: JSONRPCRequest, context: "_RequestContext", on_request: OnRequest) -> None:
        try:
            outcome = await self._outcome(request, context, on_request)
            if outcome is None or context.is_cancelled:
                # Spec: the receiver of a cancellation does not answer the request.
                await _settle_unanswered(context.message_metadata)
            else:
                self._send(request.id, outcome)
        except Exception:
            # The client would wait for ever. The end of the session tells it.
            logger.exception("An answer could not be sent")
            self._inbound.close()
        finally:
            assert context.task is not None
            self._tasks.discard(context.task)

    async def _outcome(
        self, request: JSONRPCRequest, context: "_RequestContext", on_request: OnRequest
    ) -> dict[str, Any] | ErrorData | None:
        """Run the handler. Exceptions become the errors that the SDK's dispatcher makes of them.

        Returns None if the client has cancelled the request.
        """
        try:
            return await on_request(context, request.method, request.params)
        except asyncio.CancelledError:
            if context.is_cancelled:
                return None
            # The session ends.
            self._send(request.id, ErrorData(code=CONNECTION_CLOSED, message="Connection closed"))
            raise
        except Exception as exception:
            found = handler_exception_to_error_data(exception)
            if found is None:
                logger.exception("handler for %r raised", request.method)
                found = ErrorData(code=0, message=str(exception))
            return found
        finally:
            context.close()
            if self._in_flight.get(context.key) is context:
                del self._in_flight[context.key]

    def _send(self, request_id: RequestId, outcome: dict[str, Any] | ErrorData) -> None:
        if isinstance(outcome, ErrorData):
            error = JSONRPCError(jsonrpc="2.0", id=request_id, error=outcome)
            self._answer(request_id, None, message_body(error))
        else:
            self._answer(request_id, outcome, self._withhold(request_id, outcome) or result_body(request_id, outcome))


async def _settle_unanswered(metadata: ServerMessageMetadata) -> None:
    if metadata.on_request_unanswered is not None:
        try:
            await metadata.on_request_unanswered()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("A cancelled request was not settled: nobody can be reached any more")


class _OtherMessages(MessageStream):
    """The client's messages without those that are handled here: the stream that the SDK's dispatcher reads."""

    def __init__(self, inbound: Inbound, handle_here: Callable[[SessionMessage], bool]) -> None:
        self._inbound = inbound
        self._handle_here = handle_here
        self._last: SessionMessage | None = None

    async def receive(self) -> SessionMessage:
        """The next message. Raises what `Inbound.receive` raises."""
        # The SDK's loop (mcp 2.3) keeps what it got last until it gets the next message. A large one would stay as long
        # as the session, and so would its answer.
        if self._last is not None:
            self._last.message, self._last.metadata = _HANDLED, None
        while True:
            item = await self._inbound.receive()
            if not self._handle_here(item):
                self._last = item
                return item
            del item

    def close(self) -> None:
        """Close the client's stream."""
        self._inbound.close()


class _RequestContext:
    """The SDK's `DispatchContext` of one request: how its handler reaches the client."""

    __slots__ = (
        "_cancel_requested",
        "_is_closed",
        "_others",
        "_progress_token",
        "is_cancelled",
        "key",
        "message_metadata",
        "request_id",
        "task",
        "transport",
    )

    def __init__(
        self, others: JSONRPCDispatcher[TransportContext], request: JSONRPCRequest, metadata: ServerMessageMetadata
    ) -> None:
        self.request_id: RequestId = request.id
        self.key = coerce_request_id(request.id)
        self.message_metadata = metadata
        self.transport = _TRANSPORT
        self.task: asyncio.Task[None] | None = None
        self.is_cancelled = False
        """Whether the client has cancelled the request."""
        self._others = others
        self._progress_token: ProgressToken | None = progress_token_from_params(request.params)
        self._cancel_requested: anyio.Event | None = None
        self._is_closed = False

    @property
    def can_send_request(self) -> bool:
        """Whether the handler may ask the client something."""
        return not self._is_closed

    @property
    def cancel_requested(self) -> anyio.Event:
        """Set when the client has cancelled the request. Made when somebody asks for it, which is rare."""
        if self._cancel_requested is None:
            self._cancel_requested = anyio.Event()
            if self.is_cancelled:
                self._cancel_requested.set()
        return self._cancel_requested

    def cancel(self) -> None:
        """Cancel the handler: the client no longer waits for the answer."""
        self.is_cancelled = True
        if self._cancel_requested is not None:
            self._cancel_requested.set()
        assert self.task is not None
        # Later, because a task that is cancelled before its first step never runs, and the request must be settled.
        asyncio.get_running_loop().call_soon(self.task.cancel)

    def close(self) -> None:
        """Note that the handler has ended. What it has started can send nothing for this request any more."""
        self._is_closed = True

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client something for this request.

        Raises:
            NoBackChannelError: the request has been handled.
            MCPError: as the SDK's dispatcher raises it.
        """
        if self._is_closed:
            raise NoBackChannelError(method)
        with self._related():
            return await self._others.send_raw_request(method, params, opts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Notify the client of something that belongs to this request."""
        if self._is_closed:
            logger.debug("A notification was dropped: its request has been handled")
            return
        with self._related():
            await self._others.notify(method, params, opts)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, if the client wants to be told of it."""
        if self._progress_token is not None:
            told = {"progressToken": self._progress_token, "progress": progress, "total": total, "message": message}
            await self.notify(
                "notifications/progress", {name: value for name, value in told.items() if value is not None}
            )

    @contextmanager
    def _related(self) -> Iterator[None]:
        token = _related_request_id.set(self.request_id)
        try:
            yield
        finally:
            _related_request_id.reset(token)
