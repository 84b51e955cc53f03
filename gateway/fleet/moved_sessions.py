"""Ends HTTP+SSE sessions whose callers belong to another node after one has joined.

Their streams are here, and their messages go there. So the streams end once their calls are answered, and the clients
connect anew. Streamable HTTP sessions need nothing: the other node takes them over with their next request.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from gateway.access.identity import Identity
from gateway.transports.sessions import MOVED, Session

SETTLE_SECONDS: Final = 10.0
"""How long calls of such a session may take before it is ended with them."""

LOOK_SECONDS: Final = 0.1


async def end_moved_sessions(sessions: Iterable[Session], is_elsewhere: Callable[[bytes], bool]) -> None:
    """End the sessions whose key belongs to another node, as soon as their calls are answered."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + SETTLE_SECONDS
    while moved := [session for session in sessions if _has_moved(session, is_elsewhere)]:
        for session in moved:
            if session.is_settled or loop.time() >= ends_at:
                session.end(MOVED)
        if loop.time() >= ends_at:
            return
        await asyncio.sleep(LOOK_SECONDS)


def _has_moved(session: Session, is_elsewhere: Callable[[bytes], bool]) -> bool:
    if session.transport != "sse":
        return False
    key = key_of(session.server_name, session.identity)
    return key is not None and is_elsewhere(key)


def key_of(server_name: str, identity: Identity) -> bytes | None:
    """The owner key of a caller's requests, see `owner_keys`; None where the host keeps no text of the key."""
    if identity.is_key_hidden:
        return None
    return f"{server_name}/{identity.api_key or identity.user_id}".encode("utf-8", "surrogateescape")
