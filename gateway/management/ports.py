"""Checks ports before anything slow is done, so that a port in use is one line and not a traceback."""

import errno
import socket

from django.core.management.base import CommandError


def require_free_port(host: str, port: int, variable: str) -> None:
    """Check that this process can listen there. `variable` is the setting to change.

    Raises:
        CommandError: it cannot. The message says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandError(
                    f"Port {port} on {host} is in use. Stop what uses it, or choose another port: "
                    f"{variable}={port % 65_535 + 1} make run"
                ) from None
            # Not os.strerror: for a name that is not known the number is the resolver's.
            raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
