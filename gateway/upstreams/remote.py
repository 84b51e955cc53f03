"""One connection to an MCP server at a URL, over the SDK's own client transports.

Lives here: the HTTP client, and what went wrong last. Not here: which addresses it may connect to
(`checked_transport`).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from gateway.upstreams.bounded_response import ENCODINGS, MAX_MESSAGE_BYTES
from gateway.upstreams.checked_transport import CheckedTransport
from gateway.upstreams.manifest import RemoteSource
from gateway.upstreams.placeholders import Caller, render_url

CONNECT_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 30.0
READ_SECONDS: Final = 3600.0
"""How long a response may be silent. Calls have a time limit of their own."""


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

    def note_refusal(self, reason: str) -> None:
        """Note that no connection was made, because of where the host's name leads."""
        self.refused = reason

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


@asynccontextmanager
async def open_remote(source: RemoteSource, caller: Caller, fault: LastFault) -> AsyncGenerator[TransportStreams]:
    """Connect to a remote server for one caller. Yields the streams of its messages."""
    url = render_url(source.url, caller)
    headers = {"Accept-Encoding": ENCODINGS} | {name: text.render(caller) for name, text in source.headers.items()}
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
            transport=CheckedTransport(fault.note_refusal, allows_private=source.allows_private_addresses),
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
            streamable_http_client(url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
        ):
            yield streams
