"""Clients that vanish: their connections end without a FIN."""

from __future__ import annotations

import socket
import struct

from tests.benchmarks.eras import SseSession
from tests.faults.figures import IS_FULL

TCP_REPAIR = 19
"""Linux: a socket in repair mode is closed without a word to its peer. Needs CAP_NET_ADMIN."""


def vanish(session: SseSession) -> str:
    """Drop both of its connections without a FIN: silently where this process may, by a reset where it may not.

    A connection that carried only requests is written to by nobody: that its client is gone shows after a minute. That
    is waited for in the full run only.
    """
    how = "silently"
    for connection in (session._stream, session._connection):
        if connection is None or connection._transport is None:
            continue
        connection._is_closing = True
        own = connection._transport.get_extra_info("socket")
        try:
            if connection is session._connection and not IS_FULL:
                raise PermissionError
            own.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError:
            how = how if connection is session._connection else "by a reset"
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection._transport.abort()
    return how
