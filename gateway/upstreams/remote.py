"""One connection to an MCP server at a URL, over the SDK's own client transports.

Lives here: the HTTP client with its address rules, and what went wrong last. Names are resolved before each connection
and checked as addresses are, so that a name cannot lead to an address that is refused.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

import httpcore2
import httpx2
from httpcore2._backends.auto import AutoBackend  # no public name for the default backend in httpcore2 2.16
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from gateway.upstreams.manifest import RemoteSource, refused_address
from gateway.upstreams.placeholders import Caller, render_url

CONNECT_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 30.0
READ_SECONDS: Final = 3600.0
"""How long a response may be silent. Calls have a time limit of their own."""

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class LastFault:
    """What the remote server's last bad response was."""

    def __init__(self) -> None:
        self.status: int | None = None
        """The HTTP status, if it was an error or a redirect."""
        self.is_html = False
        self.location_host: str | None = None
        """Where a redirect led."""
        self.has_lost_session = False
        """Whether a request with a session id was answered 404."""
        self.refused = ""
        """Why no connection was made, if the host's name leads to an address that nobody may connect to."""

    async def note(self, response: httpx2.Response) -> None:
        """Look at one response (an httpx2 event hook)."""
        if response.status_code < 300:
            kind = response.headers.get("content-type", "")
            self.is_html = kind.startswith("text/html")
            self.status = None if not self.is_html else response.status_code
            return
        self.status = response.status_code
        self.is_html = response.headers.get("content-type", "").startswith("text/html")
        self.location_host = None
        if response.is_redirect and response.next_request is not None:
            self.location_host = response.next_request.url.host
        if response.status_code == 404 and "mcp-session-id" in response.request.headers:
            self.has_lost_session = True

    def sentence(self) -> str | None:
        """What is wrong, for callers and operators; None if no response was bad."""
        status = self.status
        if self.refused:
            return "The remote server's name leads to an address that is refused."
        if status is None:
            return None
        if status in (401, 403):
            return f"The remote server refused the credentials (status {status})."
        if 300 <= status < 400:
            return "The remote server answered with a redirect, which is followed only within its own address."
        if self.is_html:
            return f"The remote server answered with a web page (status {status}): its URL is not an MCP endpoint."
        if status == 404:
            return "The remote server has no MCP endpoint at this URL (status 404)."
        if status == 429:
            return "The remote server has had too many requests (status 429). Try again later."
        return f"The remote server {'failed' if status >= 500 else 'refused the request'} (status {status})."


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that may be connected to, and to no others."""

    def __init__(self, fault: LastFault, *, allows_private: bool) -> None:
        self._inner = AutoBackend()
        self._fault = fault
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
                self._fault.refused = f"{host} is {reason}"
                raise httpcore2.ConnectError(self._fault.refused)
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


class _CheckedTransport(httpx2.AsyncHTTPTransport):
    """httpx2's transport on a pool whose addresses are checked."""

    def __init__(self, fault: LastFault, *, allows_private: bool) -> None:
        super().__init__(verify=_ssl_context())
        # httpx2 2.16 has no parameter for the backend of its pool.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            network_backend=_CheckedBackend(fault, allows_private=allows_private),
        )


@asynccontextmanager
async def open_remote(source: RemoteSource, caller: Caller, fault: LastFault) -> AsyncGenerator[TransportStreams]:
    """Connect to a remote server for one caller. Yields the streams of its messages."""
    url = render_url(source.url, caller)
    headers = {name: text.render(caller) for name, text in source.headers.items()}
    timeout = httpx2.Timeout(WRITE_SECONDS, connect=CONNECT_SECONDS, read=READ_SECONDS)

    def make_client(
        headers: dict[str, str] | None = headers,
        timeout: httpx2.Timeout | None = timeout,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=headers,
            timeout=timeout,
            auth=auth,
            trust_env=False,
            transport=_CheckedTransport(fault, allows_private=source.allows_private_addresses),
            event_hooks={"response": [fault.note]},
        )

    if source.type == "sse":
        async with sse_client(
            url, headers=headers, timeout=WRITE_SECONDS, sse_read_timeout=READ_SECONDS, httpx_client_factory=make_client
        ) as streams:
            yield streams
    else:
        async with (
            make_client() as client,
            streamable_http_client(url, http_client=client, max_sse_event_size=MAX_EVENT_BYTES) as streams,
        ):
            yield streams
