"""Listening sockets behind Twisted's ports."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from twisted.internet import tcp
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock

from gateway.serving.sockets import accept_all_before_closing


def test_port_accepts_who_connects_until_it_is_closed() -> None:
    made: list[Protocol] = []

    class Counting(Factory):  # type: ignore[misc]
        noisy = False

        def buildProtocol(self, addr: object) -> Protocol:
            made.append(Protocol())
            return made[-1]

    reactor = MemoryReactorClock()
    port = tcp.Port(0, Counting(), interface="127.0.0.1", reactor=reactor)
    port.startListening()
    accept_all_before_closing(port)
    with ExitStack() as stack:
        address = port.socket.getsockname()
        stopped = port.stopListening()
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
        reactor.advance(0)
        assert stopped.called
        assert len(made) == 3
        for protocol in made:
            protocol.transport.abortConnection()
        reactor.advance(0)
