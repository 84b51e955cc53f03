"""What the host does around every request that reaches a server's handlers, on every transport: SDK middleware.

Lives here: tool call metrics, and containing what a handler must not do to its lane.
"""

import asyncio
import time
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

from gateway import metrics
from gateway.offers import Offers
from gateway.tool_schemas import current_schemas


class HandlerAborted(Exception):
    """A handler raised something that would have ended its event loop."""


class CallMiddleware:
    """Counts and times tool calls of one server, and keeps `SystemExit` and its kin from ending the lane."""

    def __init__(self, server_name: str, offers: Offers) -> None:
        self._server_name = server_name
        self._offers = offers

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises what the handler raises, `HandlerAborted` for what is no `Exception`."""
        if ctx.method == "tools/list":
            result = await _contained(ctx, call_next)
            _remember_schemas(ctx, result)
            return result
        if ctx.method != "tools/call":
            return await _contained(ctx, call_next)
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            result = await _contained(ctx, call_next)
            outcome = "error" if isinstance(result, dict) and result.get("isError") else "ok"
            return result
        except Exception:
            outcome = "exception"
            raise
        finally:
            self._count(ctx, outcome, time.perf_counter() - started)

    def _count(self, ctx: ServerRequestContext[Any, Any], outcome: str, seconds: float) -> None:
        name = (ctx.params or {}).get("name")
        offer = self._offers.get(self._server_name)
        tool = name if isinstance(name, str) and offer is not None and name in offer.tools else metrics.OTHER_TOOL
        metrics.tool_calls.labels(self._server_name, tool, outcome).inc()
        metrics.tool_call_seconds.labels(self._server_name, tool).observe(seconds)


def _remember_schemas(ctx: ServerRequestContext[Any, Any], result: HandlerResult) -> None:
    schemas = current_schemas.get(None)
    if schemas is not None and isinstance(result, dict) and isinstance(result.get("tools"), list):
        is_complete = "nextCursor" not in result and "cursor" not in (ctx.params or {})
        schemas.learn(result["tools"], is_complete=is_complete)


async def _contained(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    try:
        return await call_next(ctx)
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    # asyncio lets SystemExit and KeyboardInterrupt out of the loop, and with it would go every session of the lane.
    except BaseException as error:
        raise HandlerAborted(f"The handler raised {type(error).__name__}.") from error
