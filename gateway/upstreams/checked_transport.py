"""An HTTP transport that connects only to addresses that may be connected to, and bounds what it reads there.

Names are resolved before each connection and checked as addresses are, so that a name cannot lead to an address that is
refused.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import httpcore2
import httpx2
from httpcore2._backends.auto import AutoBackend  # no public name for the default backend in httpcore2 2.16

from gateway.http.addresses import refused_address
from gateway.upstreams.bounded_response import bounded


class CheckedTransport(httpx2.AsyncHTTPTransport):
    """httpx2's transport on a pool whose addresses are checked."""

    def __init__(self, on_refused: Callable[[str], object], *, allows_private: bool) -> None:
        """`on_refused` is told why no connection was made."""
        super().__init__(verify=_ssl_context())
        # httpx2 2.16 has no parameter for the backend of its pool.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            network_backend=_CheckedBackend(on_refused, allows_private=allows_private),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response, with a bounded body."""
        return bounded(await super().handle_async_request(request))


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that may be connected to, and to no others."""

    def __init__(self, on_refused: Callable[[str], object], *, allows_private: bool) -> None:
        self._inner = AutoBackend()
        self._on_refused = on_refused
        self._allows_private = allows_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve `host`, check what it leads to, and connect to that."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]) for info in found]
        for address in addresses:
            reason = refused_address(address, allows_private=self._allows_private)
            if reason is not None:
                refusal = f"{host} is {reason}"
                self._on_refused(refusal)
                raise httpcore2.ConnectError(refusal)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        """Refused: a URL names no Unix socket."""
        raise httpcore2.ConnectError("Unix sockets are not connected to")

    async def sleep(self, seconds: float) -> None:
        """Wait (httpcore2 asks for it between retries)."""
        await self._inner.sleep(seconds)


@cache
def _ssl_context() -> ssl.SSLContext:
    """The certificates that are trusted. To read them takes a tenth of a second, in which the lane stands still."""
    return httpx2.create_ssl_context()
