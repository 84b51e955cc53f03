"""What the host does around every request that reaches a server's handlers, on every transport, as SDK middleware.

Lives here: time limits, limits on concurrent calls, metrics of tool calls, which call blocks its lane, and keeping what
a handler raises from ending more than its own call. Not here: the threads of version 1 handlers (`handler_threads`).
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import anyio
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from mcp_types.methods import SPEC_CLIENT_METHODS

from gateway import metrics
from gateway.instances.call_clock import CallClock, ClockedSession
from gateway.instances.call_log import Call, CallLog, current_call
from gateway.instances.handler_threads import ServerThreads
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies, Policy
from gateway.instances.tool_schemas import ToolSchemas
from gateway.tool_results import error_result
from gateway.waiting import Alarms, wait_for

logger = logging.getLogger(__name__)

UNLIMITED: Final = frozenset({"initialize", "ping", "subscriptions/listen"})
"""Methods without limits: the protocol's own, and the one that lasts as long as its client listens."""

GIVE_UP_SECONDS: Final = 1.0
"""How long a cancelled handler may take to clean up. After that the host no longer waits for it."""

MAX_NAME_LENGTH: Final = 100
"""Longest tool name that is shown. Clients can send any name."""

OTHER_METHOD: Final = "(other)"
"""The label of a method that the protocol does not define."""


class CallTimedOut(Exception):
    """A call was stopped. The text goes on after its name: why it was stopped."""


class HandlerAborted(Exception):
    """A handler raised something that would have ended more than its own call."""


class RunningCall(NamedTuple):
    """One request that is being handled."""

    label: str
    """The tool's label in metrics, or the method. It is one of a bounded set."""
    name: str
    """What people are shown: the tool's name as the client sent it, or the method."""
    started: float
    """Monotonic seconds."""


class ServerCalls:
    """The calls of one server: how many run, for which users, and in which tasks.

    Threads: calls are counted in the server's lane only. Any thread may use `policy`, `stuck`, `blocking`, `threads`.
    """

    def __init__(self, server_name: str, listings: Listings, policies: Policies, log: CallLog | None = None) -> None:
        self.server_name = server_name
        self._listings = listings
        self._policies = policies
        self.log = log or CallLog(keeps_calls=False)
        """Where calls are noted when they have ended."""
        self.traffic = self.log.traffic(server_name)
        self.metrics = metrics.ToolCallMetrics(server_name)
        self.by_user: dict[str, int] = {}
        """How many calls of each user run."""
        self.running: dict[asyncio.Task[Any], RunningCall] = {}
        self.given_up: set[asyncio.Task[Any]] = set()
        """Handlers that were cancelled and still run in the lane."""
        self.alarms = Alarms()
        """The time limits of the calls. Used in the lane."""
        self.threads = ServerThreads(server_name, lambda: self.policy)
        """Where the handlers of a version 1 server run."""

    @property
    def policy(self) -> Policy:
        """The limits in force now."""
        return self._policies.get(self.server_name)

    def tool_label(self, name: object) -> str:
        """The label of a called tool: its name if the server lists it."""
        listing = self._listings.get(self.server_name)
        return name if isinstance(name, str) and listing is not None and name in listing.tools else metrics.OTHER_TOOL

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Name what the current task does inside the block, in case it blocks the lane."""
        task = asyncio.current_task()
        assert task is not None
        self.running[task] = RunningCall(what, what, time.monotonic())
        try:
            yield
        finally:
            self.running.pop(task, None)

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not returned, and jobs that version 1 handlers left in `asyncio.to_thread`.

        A cancelled handler in the lane may take `GIVE_UP_SECONDS` to clean up before it counts.
        """
        return len(self.given_up) + self.threads.stuck

    def blocking(self, loop: asyncio.AbstractEventLoop) -> RunningCall | None:
        """The call that runs in `loop` at this moment. Call it from another thread, for a loop that does not answer."""
        task = asyncio.current_task(loop)
        call = self.running.get(task) if task is not None else None
        if call is None and self.running:
            # It runs in a task that a handler made. The newest call is the likeliest.
            call = max(list(self.running.values()), key=lambda running: running.started)
        return call


class CallMiddleware:
    """Runs the requests of one instance within its server's limits."""

    def __init__(self, calls: ServerCalls, user_id: str, schemas: ToolSchemas) -> None:
        self._calls = calls
        self._user_id = user_id
        self._schemas = schemas

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises what the handler raises, or `HandlerAborted` if that is not an `Exception`."""
        if ctx.request_id is None or ctx.method in UNLIMITED:
            return await _contained(ctx, call_next)
        if ctx.method == "tools/call":
            return await self._call_tool(ctx, call_next)
        label = ctx.method if ctx.method in SPEC_CLIENT_METHODS else OTHER_METHOD
        shown = _shown(ctx.method)
        try:
            call = RunningCall(label, shown, time.monotonic())
            result = await self._limited(ctx, call_next, call, self._calls.policy)
        except CallTimedOut as error:
            raise MCPError(code=INTERNAL_ERROR, message=f"{shown} {error}") from None
        if ctx.method == "tools/list" and isinstance(result, dict) and isinstance(result.get("tools"), list):
            is_complete = "nextCursor" not in result and "cursor" not in (ctx.params or {})
            self._schemas.learn(result["tools"], is_complete=is_complete)
        return result

    async def _call_tool(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        calls, policy = self._calls, self._calls.policy
        name = (ctx.params or {}).get("name")
        label, shown = calls.tool_label(name), _shown(name)
        call = Call.begin(calls.server_name, shown, self._user_id)
        if (refusal := self._refusal(policy)) is not None:
            calls.metrics.count(label, "refused")
            call.reason = f"busy: {refusal}"
            calls.log.note_refusal(call)
            return error_result(ctx, refusal)
        current_call.set(call)
        started = time.perf_counter()
        outcome = "cancelled"
        calls.by_user[self._user_id] = calls.by_user.get(self._user_id, 0) + 1
        try:
            result = await self._limited(ctx, call_next, RunningCall(label, shown, time.monotonic()), policy)
            outcome = "error" if isinstance(result, dict) and result.get("isError") else "ok"
            return result
        except CallTimedOut as error:
            outcome, call.reason = "timeout", f"It {error}"
            return error_result(ctx, f"The call of {shown} {error}")
        except Exception as error:
            # Only the type: the text may have what a caller sent.
            outcome, call.reason = "exception", type(error).__name__
            raise
        finally:
            calls.by_user[self._user_id] -= 1
            if not calls.by_user[self._user_id]:
                del calls.by_user[self._user_id]
            if label == metrics.OTHER_TOOL:  # the listing may not have been known yet when the call began
                label = calls.tool_label(name)
            seconds = time.perf_counter() - started
            calls.metrics.count(label, outcome)
            calls.metrics.observe(label, outcome, seconds)
            call.outcome, call.seconds, call.ended_at = outcome, seconds, time.time()
            calls.log.note(calls.traffic, call, label)

    def _refusal(self, policy: Policy) -> str | None:
        limit = policy.max_concurrent_calls
        if limit and sum(self._calls.by_user.values()) >= limit:
            return f"This server is running {limit} calls already, which is its limit. Try again later."
        limit = policy.max_concurrent_calls_per_user
        if limit and self._calls.by_user.get(self._user_id, 0) >= limit:
            return f"You have {limit} calls of this server running already, which is your limit. Wait for one to end."
        if len(self._calls.given_up) >= policy.max_threads:
            return f"{len(self._calls.given_up)} calls of this server are stuck, which is the limit. Tell its operator."
        return None

    async def _limited(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, call: RunningCall, policy: Policy
    ) -> HandlerResult:
        """The handler's result. Raises `CallTimedOut`, or what the handler raises.

        The handler has a task of its own. It may raise a `CancelledError` that is not its caller's, and a handler that
        ignores its cancellation must not hold up the session and the answer for ever.
        """
        running, alarms = self._calls.running, self._calls.alarms
        clock = CallClock(policy)
        # The context was made for this request. Setting it costs a hundredth of what `dataclasses.replace` does.
        ctx.session = ClockedSession(ctx.session, clock)
        task = asyncio.get_running_loop().create_task(_contained(ctx, call_next))
        running[task] = call
        try:
            await wait_for(task, clock.first_look_seconds, alarms)
            while not task.done():
                if clock.is_over:
                    timed_out = CallTimedOut(clock.reason)  # a handler that does not end may still report progress
                    await self._give_up(task)
                    raise timed_out
                await wait_for(task, clock.next_look_seconds, alarms)
        except asyncio.CancelledError:
            await self._give_up(task)
            raise
        finally:
            running.pop(task, None)
        if task.cancelled() or isinstance(task.exception(), GeneratorExit):
            raise HandlerAborted("The handler ended without an answer.")
        return task.result()

    async def _give_up(self, task: "asyncio.Task[HandlerResult]") -> None:
        """Cancel a handler. If it does not end, leave it running."""
        task.cancel()
        try:
            # Shielded: the SDK and the transports cancel with scopes, which would interrupt every wait in here.
            with anyio.CancelScope(shield=True):
                await wait_for(task, GIVE_UP_SECONDS, self._calls.alarms)
        finally:  # a shield does not stop `Task.cancel`
            if not task.done():
                self._calls.given_up.add(task)
                task.add_done_callback(self._calls.given_up.discard)
            task.add_done_callback(_note_late_end)


def _shown(name: object) -> str:
    """A name from a request, safe to show in a log line or a sentence."""
    text = str(name)[:MAX_NAME_LENGTH]
    return text if text.isprintable() else ascii(text)


def _note_late_end(task: "asyncio.Task[HandlerResult]") -> None:
    """Retrieve the exception of a handler that nobody waits for: asyncio logs exceptions that nobody retrieves."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("A handler that was given up ended with %s", type(error).__name__)


async def _contained(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    try:
        return await call_next(ctx)
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    # asyncio lets SystemExit and KeyboardInterrupt out of the loop, which would end every session of the lane.
    except BaseException as error:
        raise HandlerAborted(f"The handler raised {type(error).__name__}.") from error
