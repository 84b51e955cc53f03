"""Opens sessions: checks that there is room, holds the caller's instance, and makes the session reachable."""

from collections.abc import Callable

from gateway.catalog.definitions import ServerDefinition
from gateway.endpoints.base import McpRequest
from gateway.exceptions import GatewayError, Unauthenticated
from gateway.host.host import Host
from gateway.instances.instance import Instance
from gateway.instances.running_server import RunningServer
from gateway.transports.sessions import Session, Transport, WireT


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
) -> Session[WireT]:
    """Open a session for the caller. `Session.end` releases what it holds.

    Raises what `acquire_with_room` raises.
    """
    instance = await acquire_with_room(host, request)
    session: Session[WireT] = Session(request.definition.name, request.identity, transport, request.address)

    def close() -> None:
        host.sessions.remove(session)
        host.instances.release(instance)

    session.open(make_wire(instance.running, session), close)
    host.sessions.add(session)
    return session
