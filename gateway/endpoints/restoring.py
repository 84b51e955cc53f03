"""Goes on with sessions of other processes: of those that died, were replaced, or no longer own the caller.

Streamable HTTP sessions keep their id. Clients of HTTP+SSE connect again, and some then go on without `initialize`: for
them the `initialize` of the session that they have lost is sent to the server. In both cases the server is told again
what the client told it: `initialize`, the log level, subscriptions. The answers go to nobody. No call is repeated.

Not here: what is known of such sessions (`gateway.records.restorable_sessions`).
"""

import asyncio
import logging
from functools import partial
from typing import Any, Final

from mcp_types import JSONRPCRequest

from gateway import metrics
from gateway.conf import conf
from gateway.endpoints.base import McpRequest
from gateway.endpoints.opening import open_session, require_still_open, state_of, user_agent
from gateway.exceptions import InstanceUnavailable, SessionBacklogFull
from gateway.host.host import Host
from gateway.instances.running_server import RunningServer
from gateway.jsonrpc import INITIALIZE, JSONRPCMessage
from gateway.transports.session_state import SessionState, needs_handshake
from gateway.transports.sessions import NOT_RESTORED, Session
from gateway.transports.streamable_http import StreamableHttpTransport
from gateway.transports.wire import SseWire, StreamableHttpWire

logger = logging.getLogger(__name__)

LOOP_ENDED: Final = "its message loop ended"
"""End reason of a session whose message loop ended by itself."""

REFUSED: Final = "its server refused to go on with it"
"""End reason of a session whose server refused, or answered differently, the `initialize` that it had accepted."""

TOLD_BYTES: Final = 4096
"""Memory that is counted for telling a server a session's state again, besides the length of `initialize`."""


class SessionRestorer:
    """Restores Streamable HTTP sessions. Used on the host's loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._restoring: dict[str, asyncio.Task[Session[StreamableHttpWire] | None]] = {}

    async def restore(self, session_id: str, request: McpRequest) -> Session[StreamableHttpWire] | None:
        """The session with this id, if another process had it and it is the caller's.

        Raises:
            SessionsUnavailable: nobody can say now whether there is such a session.
            GatewayError: there is no room for it, or no instance.
        """
        restoring = self._restoring.get(session_id)
        if restoring is None:
            if not self._host.restorable.may_be_elsewhere(session_id, request.definition.name, request.identity):
                return None
            restoring = self._restoring[session_id] = asyncio.create_task(self._restore(session_id, request))
            restoring.add_done_callback(lambda task: task.cancelled() or task.exception())
        elif not self._host.restorable.ids.is_genuine(session_id, request.definition.name, request.identity):
            return None
        # Shielded: other requests of the session may wait for it when this client leaves.
        return await asyncio.shield(restoring)

    async def _restore(self, session_id: str, request: McpRequest) -> Session[StreamableHttpWire] | None:
        host, name = self._host, request.definition.name
        try:
            kept = await host.restorable.take(session_id, name, request.identity)
            if kept is None:
                return None
            request.definition = require_still_open(host, request)
            session: Session[StreamableHttpTransport] = await open_session(
                host, request, "streamable-http", partial(new_transport, host), goes_on=(session_id, kept)
            )
            reason = NOT_RESTORED
            try:
                session.wire.start(on_end=lambda: host.loop.call_soon(session.end, LOOP_ENDED))
                is_accepted = await _tell(host, request, session, state_of(kept), kept.protocol_version)
                if not is_accepted or session.protocol_version != kept.protocol_version:
                    reason = REFUSED
                    return None
                reason = ""
            finally:
                if reason:
                    session.end(reason)
            # Operators see one session that went on.
            session.messages_in, session.messages_out, session.calls = kept.messages_in, kept.messages_out, kept.calls
            metrics.sessions_restored.labels(name, "streamable-http").inc()
            logger.info("Restored a session of %s with %s", request.identity.user_id, name)
            return session  # type: ignore[return-value]
        finally:
            del self._restoring[session_id]


class SseAdopter:
    """Gives new HTTP+SSE streams the `initialize` that their clients leave out. Used on the host's loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._adopting: dict[Session[SseWire], asyncio.Task[None]] = {}

    async def prepare(self, session: Session[SseWire], message: JSONRPCMessage, request: McpRequest) -> None:
        """Make the session ready for `message`, the first one that it gets.

        Raises:
            SessionsUnavailable: nobody can say now whether there was a session before.
        """
        if session.state is None or session.state.initialize:
            return
        if not (session.state.agent and self._host.restorable.is_running and needs_handshake(message)):
            return
        adopting = self._adopting.get(session)
        if adopting is None:
            adopting = self._adopting[session] = asyncio.create_task(self._adopt(session, request))
            adopting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(adopting)

    async def _adopt(self, session: Session[SseWire], request: McpRequest) -> None:
        host, name = self._host, request.definition.name
        try:
            agent = session.state.agent if session.state is not None else user_agent(request.scope)
            kept = await host.restorable.adopt(name, request.identity, agent)
            if kept is None or not host.sessions.has(session.id):
                return
            if await _tell(host, request, session, state_of(kept), kept.protocol_version):
                session.announce()
                metrics.sessions_restored.labels(name, "sse").inc()
                logger.info("Restored a session of %s with %s", request.identity.user_id, name)
        finally:
            del self._adopting[session]


def new_transport(
    host: Host, running: RunningServer, session: Session[StreamableHttpTransport]
) -> StreamableHttpTransport:
    """The wire of a Streamable HTTP session."""
    return StreamableHttpTransport(
        running,
        session,
        max_backlog=conf.max_session_backlog,
        max_events=conf.max_kept_events,
        max_event_bytes=conf.max_kept_event_bytes,
        shared_events=host.shared_events,
    )


async def _tell(
    host: Host, request: McpRequest, session: Session[Any], state: SessionState, protocol_version: str
) -> bool:
    """Tell the server of `session` again what its client has told. Returns whether it accepted `initialize`.

    Raises:
        InstanceUnavailable: it took too long.
    """
    scope, wire = request.scope_for_server, session.wire
    answers: list[asyncio.Future[bool]] = []
    with host.message_budget.hold(request.identity, request.address, TOLD_BYTES + len(state.initialize)) as memory:
        # All at once and in this order: nothing of the client can get between them.
        for message in state.messages(protocol_version):
            if not isinstance(message, JSONRPCRequest):
                wire.deliver(message, scope, memory)
                continue
            try:
                answers.append(wire.ask(message, scope, memory))
            except SessionBacklogFull:
                # Fewer messages may wait than there are subscriptions. The rest is lost, and the session goes on.
                if message.method == INITIALIZE:
                    raise
                break
    try:
        async with asyncio.timeout(conf.factory_timeout_seconds):
            # Only `initialize` must succeed. A server that refuses the log level works otherwise.
            return (await asyncio.gather(*answers))[0]
    except TimeoutError:
        logger.error(
            "Server %s did not take a session back within %s seconds",
            request.definition.name,
            conf.factory_timeout_seconds,
        )
        raise InstanceUnavailable("The server took too long to go on with this session. Try again.") from None
