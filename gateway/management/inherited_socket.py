"""The socket that systemd has opened for this process (socket activation): `LISTEN_FDS`, `LISTEN_PID`.

Spec: sd_listen_fds(3).
"""

import os
import socket
from typing import Any, Final

from django.core.management.base import CommandError

FIRST_DESCRIPTOR: Final = 3


def take_inherited_socket() -> socket.socket | None:
    """The listening socket that was handed to this process; None if there is none. Its children do not inherit it.

    Raises:
        CommandError: there are several, or it does not listen.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count or pid != str(os.getpid()):
        return None
    if count != "1":
        raise CommandError(f"LISTEN_FDS is {count}. The host serves one socket: give its unit one ListenStream.")
    try:
        inherited = socket.socket(fileno=FIRST_DESCRIPTOR)
        is_listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CommandError(f"LISTEN_FDS is set, but descriptor 3 is not a socket: {error.strerror}.") from None
    if not is_listening:
        raise CommandError("LISTEN_FDS is set, but descriptor 3 is a socket that does not listen.")
    inherited.set_inheritable(False)
    return inherited


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Address and port of a listening socket; a Unix socket is local and has port 0."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return "127.0.0.1", 0
    name = listener.getsockname()
    return str(name[0]), int(name[1])


def endpoint_of(descriptor: int, family: socket.AddressFamily) -> Any:
    """The endpoint of a socket that listens already. Call it after Daphne was imported, which chooses the reactor."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import AdoptedStreamServerEndpoint

    return AdoptedStreamServerEndpoint(reactor, descriptor, family)
