"""The SDK's dispatcher with a shorter way for requests to the other side, and bounds on what the other side sends.

Intentional differences, which save time in every call: no span for tracing, no time limit (calls have theirs), a future
in place of a memory stream. What arrives is handled by the SDK's own code, in a task for each message; here is how many
of them there may be. The names with an underscore are those of mcp 2.3.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import anyio
from mcp.shared.dispatcher import CallOptions, OnNotify, OnRequest, ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR, ErrorData, JSONRPCNotification, JSONRPCRequest, RequestId

CANCEL_SECONDS: Final = 5.0
"""How long it may take to tell the other side that a request is cancelled."""

MAX_QUESTIONS: Final = 64
"""Requests of the other side that may wait for their answers at once. Further ones are answered with an error."""

MAX_UNHANDLED: Final = 64
"""Notifications and refusals that may be under way at once. Meanwhile nothing more is read, so the other side waits."""


class _Waiter:
    """A request that waits for its response. It stands where the SDK has a record with a memory stream."""

    def __init__(self, on_progress: ProgressFnT | None) -> None:
        self.on_progress = on_progress
        self.send = self
        self.outcome: asyncio.Future[dict[str, Any] | ErrorData] = asyncio.get_running_loop().create_future()

    def send_nowait(self, outcome: dict[str, Any] | ErrorData) -> None:
        """Take the response."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class UpstreamDispatcher(JSONRPCDispatcher[TransportContext]):
    """One conversation with the other side."""

    def __init__(self, *streams: Any) -> None:
        """`streams` are the SDK's: to read from and to write to."""
        super().__init__(*streams)
        self._questions = 0
        self._unhandled = 0
        self._handled = asyncio.Event()

    async def _dispatch(
        self,
        item: SessionMessage | Exception,
        on_request: OnRequest,
        on_notify: OnNotify,
        sender_ctx: contextvars.Context | None,
    ) -> None:
        """Handle one message of the other side, or wait until there is room for it."""
        message = None if isinstance(item, Exception) else item.message
        if isinstance(message, JSONRPCNotification | JSONRPCRequest):
            while self._unhandled >= MAX_UNHANDLED:
                self._handled.clear()
                await self._handled.wait()
        if isinstance(message, JSONRPCRequest) and self._questions >= MAX_QUESTIONS:
            error = ErrorData(
                code=INTERNAL_ERROR, message=f"More than {MAX_QUESTIONS} requests wait for their answers."
            )
            self._spawn(self._write_error, message.id, error, sender_ctx=sender_ctx)
            return
        await super()._dispatch(item, on_request, on_notify, sender_ctx)

    def _spawn(self, fn: Callable[..., Awaitable[Any]], *args: object, sender_ctx: contextvars.Context | None) -> None:
        """Start a task for a message and count it until it ends."""
        is_question = fn == self._handle_request

        async def counted() -> None:
            try:
                await fn(*args)
            finally:
                self._count(is_question, -1)
                self._handled.set()

        self._count(is_question, 1)
        super()._spawn(counted, sender_ctx=sender_ctx)

    def _count(self, is_question: bool, change: int) -> None:
        if is_question:
            self._questions += change
        else:
            self._unhandled += change

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        *,
        _related_request_id: RequestId | None = None,
    ) -> dict[str, Any]:
        """Send a request and wait for its result.

        Raises:
            MCPError: the other side answered with an error, or (`CONNECTION_CLOSED`) it has gone.
        """
        if self._closed:
            raise MCPError(code=CONNECTION_CLOSED, message="Connection closed")
        opts = opts or {}
        request_id = self._allocate_id()
        waiter = _Waiter(opts.get("on_progress"))
        sent = dict(params or {})
        if waiter.on_progress is not None:
            sent["_meta"] = {**(sent.get("_meta") or {}), "progressToken": request_id}
        message = JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, **({"params": sent} if sent else {}))
        headers = opts.get("headers")
        self._pending[request_id] = waiter  # type: ignore[assignment]
        try:
            metadata = ClientMessageMetadata(headers=headers) if headers else None
            await self._write_stream.send(SessionMessage(message, metadata))
            outcome = await waiter.outcome
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise MCPError(code=CONNECTION_CLOSED, message="Connection closed") from None
        except asyncio.CancelledError:
            if opts.get("cancel_on_abandon", True):
                await self._final_write(
                    partial(self._cancel_outbound, request_id, "caller cancelled", None),
                    shield=True,
                    timeout=CANCEL_SECONDS,
                    describe=f"cancellation of request {request_id}",
                )
            raise
        finally:
            self._pending.pop(request_id, None)
        if isinstance(outcome, ErrorData):
            raise MCPError(code=outcome.code, message=outcome.message, data=outcome.data)
        return outcome
