"""TCP sockets behind Twisted's transports."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

from twisted.internet import tcp
from twisted.protocols.policies import ProtocolWrapper

logger = logging.getLogger(__name__)

LONGEST_QUEUE: Final = 65_535
"""More connections than the kernel keeps for a listening socket."""


def innermost(transport: Any) -> Any:
    """The transport that owns the socket: under TLS not the one that a protocol writes to."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def watch_for_lost_peer(handle: socket.socket, lost_seconds: int) -> None:
    """Have the kernel notice within `lost_seconds` that a peer vanished without a FIN."""
    try:
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # The connection may be silent for a third of the time, then come three probes. Keepalive does not probe while
        # sent bytes are not acknowledged, which is the usual case on a stream: the user timeout covers that. It also
        # takes precedence over the number of probes (tcp(7)) and is checked when a probe is due, hence one probe's time
        # less.
        for option, value in (
            ("TCP_KEEPIDLE", max(1, lost_seconds // 3)),
            ("TCP_KEEPINTVL", max(1, lost_seconds // 6)),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", lost_seconds * 5000 // 6),
        ):
            if hasattr(socket, option):
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:
        logger.debug("The TCP options of a connection could not be set", exc_info=True)


def accept_all_before_closing(port: tcp.Port) -> None:
    """Have a port, when it is closed, accept who still waits in its queue.

    Twisted stops to accept a turn of the loop before it closes the socket. The kernel resets who has connected
    meanwhile, and a load balancer that has sent a request by then does not send it again.
    """
    close = port.connectionLost

    def accept_all_and_close(reason: Any) -> None:
        port.numberAccepts = LONGEST_QUEUE
        port.doRead()
        close(reason)

    port.connectionLost = accept_all_and_close
