"""The time limit of one call: progress renews it, and waiting for the client stops it.

A call that reports progress has not hung. A call that waits for the user (elicitation, sampling, roots) has not hung
either. So each progress notification gives the call its whole time limit again, and the time in which it waits for an
answer of the client does not count. A second, larger limit holds from the start of the call in any case.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from time import monotonic
from typing import Final, TypeVar

from mcp.server.session import ServerSession
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.message import ServerMessageMetadata
from mcp_types import ProgressNotification, RequestId, ServerNotification, ServerRequest
from pydantic import BaseModel

from gateway.instances.policies import Policy

SHORTEST_LOOK_SECONDS: Final = 0.5
"""The shortest pause between two looks at a call that waits for its client."""

can_ask_client: Final[ContextVar[Callable[[], bool]]] = ContextVar("can_ask_client", default=lambda: True)
"""Whether a request of the server, outside any request of the client, can reach the client now.

A Streamable HTTP client without a standalone stream does not see it: waiting for its answer is not waiting for a user.
"""

_ResultT = TypeVar("_ResultT", bound=BaseModel)


class CallClock:
    """Measures the time of one call. Used in the lane of its server."""

    __slots__ = ("_is_renewed", "_left", "_policy", "_renewed_at", "_started", "_waits")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._started = self._renewed_at = monotonic()
        self._is_renewed = False
        self._waits = 0
        """How many requests to the client wait for an answer."""
        self._left = 0.0
        """The seconds that were left when the clock stopped."""

    @property
    def first_look_seconds(self) -> float | None:
        """In how many seconds from the start `is_over` may become true; None for never."""
        return self._policy.call_timeout_seconds or None

    @property
    def next_look_seconds(self) -> float:
        """In how many seconds from now `is_over` may become true.

        While the clock is stopped, this is the time that was left when it stopped: then the first look after the clock
        goes on again does not come too late.
        """
        left = max(self._left, SHORTEST_LOOK_SECONDS) if self._waits else self._seconds_left
        return max(min(left, self._seconds_to_longest), 0.0)

    @property
    def is_over(self) -> bool:
        """Whether the call has no time left."""
        return self._seconds_to_longest <= 0 or (not self._waits and self._seconds_left <= 0)

    @property
    def reason(self) -> str:
        """Why the call is stopped, as the rest of a sentence that begins with its name."""
        if self._seconds_to_longest <= 0:
            return f"took longer than {self._longest:g} seconds and was stopped."
        if self._is_renewed:
            return f"reported no progress for {self._policy.call_timeout_seconds:g} seconds and was stopped."
        return f"took longer than {self._policy.call_timeout_seconds:g} seconds and was stopped."

    def renew(self) -> None:
        """Give the call its whole time limit again."""
        self._is_renewed = True
        self._renewed_at = monotonic()
        self._left = self._policy.call_timeout_seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside the block."""
        if not self._waits:
            self._left = self._seconds_left
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._renewed_at = monotonic() - (self._policy.call_timeout_seconds - self._left)

    @property
    def _seconds_left(self) -> float:
        return self._renewed_at + self._policy.call_timeout_seconds - monotonic()

    @property
    def _longest(self) -> float:
        return max(self._policy.max_call_seconds or float("inf"), self._policy.call_timeout_seconds)

    @property
    def _seconds_to_longest(self) -> float:
        return self._started + self._longest - monotonic()


class ClockedSession(ServerSession):
    """The `ServerSession` of one request. What the handler sends over it moves the clock of the call."""

    def __init__(self, session: ServerSession, clock: CallClock) -> None:
        # A `ServerSession` (mcp 2.3) has no public access to its channels, so this takes over all of its attributes.
        self.__dict__.update(vars(session))
        self._call_clock = clock
        self._can_ask_client = can_ask_client.get()

    async def send_request(
        self,
        request: ServerRequest,
        result_type: type[_ResultT],
        request_read_timeout_seconds: float | None = None,
        metadata: ServerMessageMetadata | None = None,
        progress_callback: ProgressFnT | None = None,
    ) -> _ResultT:
        """Send a request to the client. The clock is stopped until the answer comes, if the client can give one."""
        is_of_this_call = metadata is not None and metadata.related_request_id is not None
        is_delivered = is_of_this_call or self._can_ask_client()
        with self._call_clock.stopped() if is_delivered and self._may_wait_for_user(request.method) else nullcontext():
            return await super().send_request(
                request, result_type, request_read_timeout_seconds, metadata, progress_callback
            )

    def _may_wait_for_user(self, method: str) -> bool:
        """Whether the client has said that it answers such requests. One that has not may never answer."""
        capabilities = self.client_capabilities
        if capabilities is None:
            return False
        by_method = {
            "elicitation/create": capabilities.elicitation,
            "sampling/createMessage": capabilities.sampling,
            "roots/list": capabilities.roots,
        }
        return by_method.get(method) is not None

    async def send_notification(
        self, notification: ServerNotification, related_request_id: RequestId | None = None
    ) -> None:
        """Send a notification to the client. A progress notification renews the clock."""
        if isinstance(notification, ProgressNotification):
            self._call_clock.renew()
        await super().send_notification(notification, related_request_id)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, which renews the clock, whether or not the client wants to be told of it."""
        self._call_clock.renew()
        await super().report_progress(progress, total, message)
