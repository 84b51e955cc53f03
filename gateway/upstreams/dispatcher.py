"""The SDK's dispatcher with a shorter way for requests to the other side.

Intentional differences, which save time in every call: no span for tracing, no time limit (calls have theirs), a future
in place of a memory stream. What arrives is handled by the SDK's own code. The names with an underscore are those of
mcp 2.3.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import anyio
from mcp.shared.dispatcher import CallOptions, ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import CONNECTION_CLOSED, ErrorData, JSONRPCRequest, RequestId

CANCEL_SECONDS: Final = 5.0
"""How long it may take to tell the other side that a request is cancelled."""


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
