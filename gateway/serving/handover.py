"""Gives connections to other processes of this machine, and takes those that they give.

A process that has read the head of a request may find that another one is to serve it. It then sends that process the
socket itself, with what it has read so far, and has nothing more to do with the connection. That costs less than to
relay a single request and its response.

A process that ends because another one has taken its place gives that one its idle connections. A client that is about
to send a request on one of them does not find it closed.

Each process has a Unix datagram socket for this, in a folder that only its user may enter. A datagram is one
connection: its bytes, and beside them the descriptor (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.serving.head import RequestHead

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 64 * 1024
"""The most bytes that are sent with a connection."""

TAKEN_AT_ONCE: Final = 64
"""How many connections are taken in one turn of the loop."""

_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

FindOwner = Callable[[RequestHead, "tuple[str, int] | None"], "str | None"]
"""Given a request and the address at which its client called, the path of the socket of the process that is to serve
it; None if that is this process, or on another machine."""


class Handover:
    """One process's end. Used on its event loop."""

    def __init__(
        self,
        path: Path,
        find_owner: FindOwner,
        on_given: Callable[[], object] = lambda: None,
        successor: Path | None = None,
    ) -> None:
        """`path`: where this process takes connections. `on_given` is called after each that it has given to an owner.

        `successor`: where the process that takes this one's place takes them, once there is one.
        """
        self._path = path
        self._successor = successor
        self._find_owner = find_owner
        self._on_given = on_given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._take: Callable[[socket.socket, bytes], object]
        """Takes a connection and what has been read from it. Set by `listen`."""
        self._outgoing = _datagram_socket()
        self._incoming = _datagram_socket()

    def listen(self, loop: asyncio.AbstractEventLoop, take: Callable[[socket.socket, bytes], object]) -> None:
        """Take connections from now on. `take` is called with each of them and the bytes that have been read from it.

        If `take` raises `OSError`, the client has left meanwhile.

        Raises:
            OSError: the path cannot be used.
        """
        self._take = take
        self._incoming.bind(str(self._path))
        self._loop = loop
        loop.add_reader(self._incoming, self._receive)

    def give(
        self, connection: socket.socket, head: RequestHead, host: tuple[str, int] | None, data: bytes | bytearray
    ) -> bool:
        """Give a connection to the process that is to serve `head`. Returns False if the caller still has it.

        `data` is all that has been read of the request and what follows it. If the answer is True, the caller must
        close its copy of the socket, and neither read from it nor write to it.
        """
        if len(data) > MAX_BYTES:
            return False
        owner = self._find_owner(head, host)
        if owner is None:
            return False
        try:
            self._send(connection, data, owner)
        except OSError:
            # There is nobody, or more connections wait for the owner than the system keeps. The request is relayed.
            return False
        self._on_given()
        return True

    def give_to_successor(self, connection: socket.socket) -> bool:
        """Give an idle connection to the process that has taken this one's place. Returns False if there is none.

        Raises:
            BlockingIOError: more connections wait for it than the system keeps. Try again a little later.
        """
        if self._successor is None:
            return False
        try:
            self._send(connection, b"", str(self._successor))
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def _send(self, connection: socket.socket, data: bytes | bytearray, path: str) -> None:
        descriptors = array.array("i", [connection.fileno()])
        self._outgoing.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)], 0, path)

    def stop_taking(self) -> None:
        """Take what has been given until now, then nothing any more. Connections can still be given away."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        if self._loop is not None:
            self._loop.remove_reader(self._incoming)
            # Who has found the path before cannot send any more, and relays the request.
            self._incoming.shutdown(socket.SHUT_RD)
            self._receive(limit=None)
            self._loop = None
        self._incoming.close()

    def close(self) -> None:
        """Take nothing and give nothing any more."""
        if self._incoming.fileno() >= 0:
            self.stop_taking()
        self._outgoing.close()

    def _receive(self, limit: int | None = TAKEN_AT_ONCE) -> None:
        while limit is None or limit > 0:
            try:
                data, control, flags, _ = self._incoming.recvmsg(
                    MAX_BYTES, socket.CMSG_SPACE(_DESCRIPTOR_BYTES), _CLOSE_ON_EXEC
                )
            except BlockingIOError:
                return
            except OSError:
                logger.exception("A connection that another worker gave could not be taken")
                return
            limit = None if limit is None else limit - 1
            if not control:
                # It cannot be saved: the sender has let go of it.
                logger.error("A connection that another worker gave was lost: no free descriptor (flags %d)", flags)
            for _, _, content in control:
                connection = socket.socket(fileno=array.array("i", content)[0])
                connection.setblocking(False)
                try:
                    self._take(connection, data)
                except OSError as error:
                    logger.debug("A client has left while its connection was given: %s", error)
                    connection.close()
                except Exception:
                    logger.exception("A connection that another worker gave could not be taken")
                    connection.close()


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
