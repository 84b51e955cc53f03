"""Opens sessions: checks that there is room, holds the caller's instance, and makes the session reachable."""

from collections.abc import Callable
from typing import Final

from gateway.catalog.definitions import ServerDefinition
from gateway.endpoints.base import McpRequest
from gateway.exceptions import GatewayError, Unauthenticated
from gateway.host.host import Host
from gateway.http.asgi import Scope
from gateway.http.requests import header
from gateway.instances.instance import Instance
from gateway.instances.running_server import RunningServer
from gateway.records.restorable_rows import KeptSession
from gateway.transports.session_state import SessionState
from gateway.transports.sessions import Session, Transport, WireT

MAX_AGENT_LENGTH: Final = 500


def require_still_open(host: Host, request: McpRequest) -> ServerDefinition:
    """Check again that the server and the key may be used, after something that took time. Returns the newest code.

    Raises:
        Unauthenticated, UnknownServer, ServerDisabled
    """
    if request.identity.is_revoked:
        raise Unauthenticated
    return host.availability.find(request.definition.name)


async def acquire_with_room(host: Host, request: McpRequest) -> Instance:
    """Hold the caller's instance, with room for one more session or listener at the moment of return.

    Release it with `host.instances.release`.

    Raises:
        GatewayError: there is no room, or the instance could not be made.
    """
    # Check before the factory runs, which may take long. Others may take the room meanwhile, so it is made afterwards.
    room = host.doorkeeper.session_room
    room.require(request.identity, request.address)
    instance = await host.instances.acquire(request.definition, request.identity, request.address)
    try:
        room.make(request.identity, request.address)
    except GatewayError:
        host.instances.release(instance)
        raise
    return instance


async def open_session(
    host: Host,
    request: McpRequest,
    transport: Transport,
    make_wire: Callable[[RunningServer, Session[WireT]], WireT],
    *,
    goes_on: tuple[str, KeptSession] | None = None,
) -> Session[WireT]:
    """Open a session for the caller. `Session.end` releases what it holds.

    `goes_on`: the id, and what is known, of a session that another process had.

    Raises what `acquire_with_room` raises.
    """
    instance = await acquire_with_room(host, request)
    session: Session[WireT] = Session(request.definition.name, request.identity, transport, request.address)
    session.budget = host.message_budget
    if goes_on is not None:
        session.id, kept = goes_on
        session.row_id, session.opened_at = kept.row_id, kept.opened_at
        session.state = state_of(kept)
    elif host.restorable.is_running and transport != "console":  # that one ends with its page
        if transport == "sse":
            # Its id ends with its stream, so it is found by the program that had it.
            session.state = SessionState(agent=user_agent(request.scope))
        else:
            session.id = host.restorable.ids.new(session.server_name, session.identity)
            session.state = SessionState()

    def close() -> None:
        host.sessions.remove(session)
        host.instances.release(instance)

    session.open(make_wire(instance.running, session), close)
    host.sessions.add(session)
    return session


def state_of(kept: KeptSession) -> SessionState:
    """The state of a session as its row has it."""
    return SessionState(
        epoch=kept.epoch,
        initialize=kept.initialize,
        is_initialized=kept.is_initialized,
        log_level=kept.log_level,
        subscriptions=dict.fromkeys(kept.subscriptions),
    )


def user_agent(scope: Scope) -> str:
    """What the client's program calls itself; empty if it does not say."""
    return (header(scope, b"user-agent") or "")[:MAX_AGENT_LENGTH]
