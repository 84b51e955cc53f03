"""What the host does around every request that reaches a server's handlers, on every transport: SDK middleware.

Lives here: time limits, concurrency limits, metrics of tool calls, which call is blocking its lane, and containing what
a handler must not do to its lane. Not here: the threads that version 1 handlers run in (`compat.workers`).
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import anyio
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from gateway import metrics
from gateway.compat.workers import HandlerThreads
from gateway.offers import Offers
from gateway.policies import Policies, Policy
from gateway.tool_schemas import ToolSchemas

UNLIMITED: Final = frozenset({"initialize", "ping", "subscriptions/listen"})
"""Methods that are the protocol's own, or last as long as their client listens."""


class HandlerAborted(Exception):
    """A handler raised something that would have ended its event loop."""


@dataclass(frozen=True, slots=True)
class RunningCall:
    """One request that is being handled."""

    method: str
    tool: str
    """The tool's label in metrics and logs; empty for other methods."""
    started: float
    """Monotonic seconds."""


class ServerCalls:
    """The calls of one server: how many run, for whom, and in which tasks. Changed in the server's lane only."""

    def __init__(self, server_name: str, offers: Offers, policies: Policies) -> None:
        self.server_name = server_name
        self._offers = offers
        self._policies = policies
        self.by_user: Counter[str] = Counter()
        self.running: dict[asyncio.Task[Any], RunningCall] = {}
        self._threads: list[HandlerThreads] = []

    @property
    def policy(self) -> Policy:
        """The limits in force now."""
        return self._policies.get(self.server_name)

    def tool_label(self, name: object) -> str:
        """The label of a called tool: its name if the server lists it."""
        offer = self._offers.get(self.server_name)
        return name if isinstance(name, str) and offer is not None and name in offer.tools else metrics.OTHER_TOOL

    def new_threads(self) -> HandlerThreads:
        """Threads for the handlers of one generation of the server's code."""
        threads = HandlerThreads(self.server_name, limit=self.policy.max_threads)
        self._threads.append(threads)
        return threads

    @property
    def threads(self) -> HandlerThreads:
        """The threads of the newest code, made when first asked for."""
        return self._threads[-1] if self._threads else self.new_threads()

    def retire_threads(self) -> None:
        """Give the next generation threads of its own. Calls in flight finish in the old ones."""
        for threads in self._threads:
            threads.close()
        self._threads = [threads for threads in self._threads if threads.busy or threads.stuck]
        self.new_threads()

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not returned; their threads cannot be ended."""
        return sum(threads.stuck for threads in list(self._threads))

    def keep_up(self) -> None:
        """Apply the limit on threads and let idle ones go. Called regularly."""
        for threads in list(self._threads):
            threads.limit = self.policy.max_threads
            threads.retire_idle()

    def close(self) -> None:
        """Let all threads go."""
        for threads in self._threads:
            threads.close()

    def blocking(self, loop: asyncio.AbstractEventLoop) -> RunningCall | None:
        """The call that runs in `loop` at this moment. Asked from another thread, of a loop that does not answer."""
        task = asyncio.current_task(loop)
        call = self.running.get(task) if task is not None else None
        if call is None and self.running:
            # It runs in a task that a handler made: the newest call is the likeliest.
            call = max(list(self.running.values()), key=lambda running: running.started)
        return call


class CallMiddleware:
    """Runs the requests of one instance within its server's limits."""

    def __init__(self, calls: ServerCalls, user_id: str, schemas: ToolSchemas) -> None:
        self._calls = calls
        self._user_id = user_id
        self._schemas = schemas

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises what the handler raises, `HandlerAborted` for what is no `Exception`."""
        if ctx.request_id is None or ctx.method in UNLIMITED:
            return await _contained(ctx, call_next)
        if ctx.method == "tools/call":
            return await self._call_tool(ctx, call_next)
        result = await self._limited(ctx, call_next, "")
        if result is _TIMED_OUT:
            raise MCPError(code=INTERNAL_ERROR, message=self._too_long(ctx.method))
        if ctx.method == "tools/list" and isinstance(result, dict) and isinstance(result.get("tools"), list):
            is_complete = "nextCursor" not in result and "cursor" not in (ctx.params or {})
            self._schemas.learn(result["tools"], is_complete=is_complete)
        return result

    async def _call_tool(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        calls, policy = self._calls, self._calls.policy
        tool = calls.tool_label((ctx.params or {}).get("name"))
        if (refusal := self._refusal(policy)) is not None:
            metrics.tool_calls.labels(calls.server_name, tool, "refused").inc()
            return _error_result(ctx, refusal)
        started = time.perf_counter()
        outcome = "cancelled"
        calls.by_user[self._user_id] += 1
        try:
            result = await self._limited(ctx, call_next, tool)
            if result is _TIMED_OUT:
                outcome = "timeout"
                return _error_result(ctx, self._too_long(f"The call of {tool}"))
            outcome = "error" if isinstance(result, dict) and result.get("isError") else "ok"
            return result
        except Exception:
            outcome = "exception"
            raise
        finally:
            calls.by_user[self._user_id] -= 1
            if not calls.by_user[self._user_id]:
                del calls.by_user[self._user_id]
            metrics.tool_calls.labels(calls.server_name, tool, outcome).inc()
            metrics.tool_call_seconds.labels(calls.server_name, tool).observe(time.perf_counter() - started)

    def _refusal(self, policy: Policy) -> str | None:
        limit = policy.max_concurrent_calls
        if limit and self._calls.by_user.total() >= limit:
            return f"This server is running {limit} calls already, as many as it may. Try again later."
        limit = policy.max_concurrent_calls_per_user
        if limit and self._calls.by_user[self._user_id] >= limit:
            return f"You have {limit} calls of this server running already, as many as you may. Wait for one to end."
        return None

    async def _limited(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, tool: str) -> HandlerResult:
        """The handler's result, or `_TIMED_OUT`."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.running[task] = RunningCall(ctx.method, tool, time.monotonic())
        result: HandlerResult = _TIMED_OUT
        try:
            with anyio.move_on_after(self._calls.policy.call_timeout_seconds or None):
                result = await _contained(ctx, call_next)
        finally:
            self._calls.running.pop(task, None)
        return result

    def _too_long(self, what: str) -> str:
        return f"{what} took longer than {self._calls.policy.call_timeout_seconds:g} seconds and was stopped."


_TIMED_OUT: Final[dict[str, Any]] = {}
"""Told from results by identity."""


async def _contained(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    try:
        return await call_next(ctx)
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    # asyncio lets SystemExit and KeyboardInterrupt out of the loop, and with it would go every session of the lane.
    except BaseException as error:
        raise HandlerAborted(f"The handler raised {type(error).__name__}.") from error


def _error_result(ctx: ServerRequestContext[Any, Any], text: str) -> dict[str, Any]:
    """A tool's error result in wire form: middleware that answers by itself owns the whole envelope (mcp 2.3)."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        # Spec 2026-07-28: resultType is required of every result.
        result["resultType"] = "complete"
    return result
