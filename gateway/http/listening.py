"""Finds out where this process listens, and refuses to listen on a network without keys.

ASGI tells an application nothing about sockets before the first request. So the command line of the ASGI server is
read, in the way the server itself reads it, while it imports the application. If the command line says nothing (an ASGI
server that is started from Python), the scope of each request says which address it reached (`is_local_request`), and
requests that came in over a network are refused.
"""

import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gateway.conf import SettingsError, conf
from gateway.http.addresses import is_loopback

PERMISSION: Final = "GUMCP_ALLOW_NETWORK_WITHOUT_KEYS"
"""The setting that lets a host without keys listen on a network."""

_INTERFACE: Final = re.compile(r"(?:^|:)interface=((?:\\.|[^:\\])*)")


def require_keys_or_loopback(addresses: Sequence[str]) -> None:
    """Refuse to start without keys if others can reach the host, unless an operator has allowed that.

    Raises:
        SettingsError
    """
    if conf.auth_mode != "open" or conf.allows_network_without_keys:
        return
    reached = [address for address in addresses if not is_loopback(address)]
    if reached:
        reason = f"it would listen on {', '.join(reached)}"
    elif conf.is_production:
        reason = "GUMCP_PUBLIC_URL is an https address"
    else:
        return
    raise SettingsError(
        f"guMCP does not start without keys, since {reason}: anybody could use every server as any user. "
        f"Set GUMCP_AUTH=keys and make keys with `manage.py create_key USER`, or listen on 127.0.0.1. "
        f"If it is meant to be open to everybody who can reach it, set {PERMISSION}=true."
    )


def listening_addresses(argv: Sequence[str] | None = None) -> list[str]:
    """The addresses on which this process's ASGI server listens, as far as its command line says."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    if name == "daphne" and "daphne.cli" in sys.modules:
        return _daphne_addresses(arguments)
    if name == "uvicorn" and "uvicorn.main" in sys.modules:
        return _uvicorn_addresses(arguments)
    return []


def is_local_request(scope: Any) -> bool:
    """Whether a request reached this process on an address that only this machine can reach."""
    server = scope.get("server")
    # A Unix socket has no address, and no port.
    return server is None or server[1] is None or is_loopback(str(server[0]))


def _daphne_addresses(arguments: list[str]) -> list[str]:
    from daphne.cli import DEFAULT_HOST, CommandLineInterface

    options, _ = CommandLineInterface().parser.parse_known_args(arguments)
    addresses: list[str] = []
    for description in options.socket_strings:
        if not description.startswith("unix:") and not description.startswith("fd:"):
            match = _INTERFACE.search(description)
            # Without an interface Twisted listens on all of them.
            addresses.append(match.group(1).replace("\\:", ":") if match and match.group(1) else "0.0.0.0")  # noqa: S104
    if options.file_descriptor is not None:
        addresses += _address_of_descriptor(options.file_descriptor)
    is_alone = not options.socket_strings and options.unix_socket is None and options.file_descriptor is None
    if options.host is not None or options.port is not None or is_alone:
        addresses.append(options.host or DEFAULT_HOST)
    return addresses


def _uvicorn_addresses(arguments: list[str]) -> list[str]:
    # uvicorn's own command, which also reads UVICORN_HOST and the like. The package has another object of this name.
    command: Any = sys.modules["uvicorn.main"].main
    parameters = command.make_context("uvicorn", arguments, resilient_parsing=True).params
    if (parameters.get("workers") or 1) > 1:
        _refuse_uvicorn_workers()
    if parameters.get("uds"):
        return []
    if parameters.get("fd") is not None:
        return _address_of_descriptor(parameters["fd"])
    return [str(parameters.get("host") or "127.0.0.1")]


def _refuse_uvicorn_workers() -> None:
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        # Otherwise it would start this process again and again.
        os.kill(supervisor.pid, signal.SIGTERM)
    raise SettingsError(
        "uvicorn --workers starts hosts that do not know of each other's sessions. "
        "Start one host of several processes instead: manage.py serve --workers N."
    )


def _address_of_descriptor(descriptor: int) -> list[str]:
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        if listener.family not in (socket.AF_INET, socket.AF_INET6):
            return []
        return [str(listener.getsockname()[0])]
