"""A session of each protocol era, as its clients speak on the wire: HTTP+SSE, Streamable HTTP of 2025, stateless 2026.

Spec: 2024-11-05 and 2025-11-25 ``basic/transports``; 2026-07-28 ``basic/transports`` (routing headers, ``_meta``).
A further era is a further ``Session`` class in ``ERAS``.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

from tests.benchmarks.wire import Connection, Response, WireError

_T = TypeVar("_T")

_ANSWER_SECONDS: Final = 30.0
"""How long an answer may take until it counts as lost."""

_HANDSHAKE_VERSION: Final = "2025-11-25"
_STATELESS_VERSION: Final = "2026-07-28"
_CLIENT_INFO: Final = {"name": "benchmark", "version": "1"}


class Refused(Exception):
    """The host answered a request with a status that says that it will not serve it."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"{response.status} {response.body[:120].decode(errors='replace')}")
        self.status = response.status

    @property
    def means_not_served(self) -> bool:
        """A client error or 501: this host does not speak the era. Anything else is a fault, and must be seen."""
        return 400 <= self.status < 500 or self.status == 501


class WrongAnswer(Exception):
    """An answer came that is not the one this call asked for."""


class Session:
    """One conversation with one call in flight. Subclasses know the handshake and the headers of their era."""

    is_held_by_the_server: ClassVar[bool] = True
    """Whether the server keeps something for this session while it is silent."""

    def __init__(self, port: int, server_name: str, session_key: str) -> None:
        self._port = port
        self._target = f"/{server_name}/{quote(session_key, safe=':')}"
        self._connection: Connection | None = None
        self._last_id = 0
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._post: asyncio.Future[Response] | None = None
        self._fault: Exception | None = None
        self._sent_at = 0.0
        self._answered_at = 0.0

    async def open(self) -> None:
        """Connect and shake hands. Raise ``Refused`` if the host does not serve this era."""
        raise NotImplementedError

    async def call(self, tool: str, arguments: dict[str, Any]) -> tuple[str, float]:
        """Call a tool and return the text of its result and the seconds from the request to the answer."""
        message = await self._ask("tools/call", {"name": tool, "arguments": arguments})
        try:
            result = message["result"]
            (content,) = result["content"]
            if result.get("isError"):
                raise WrongAnswer(f"the tool failed: {content['text']}")
            return content["text"], self._answered_at - self._sent_at
        except (KeyError, ValueError) as error:
            raise WrongAnswer(f"not a result with one text: {message}") from error

    async def release(self) -> None:
        """Close the connection that only requests need, as pooled clients do when they are silent for a while."""
        await self._posted()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # What the eras differ in.

    def _headers(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        return {}

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        return params

    # Requests.

    async def _initialize(self) -> dict[str, Any]:
        params = {"protocolVersion": _HANDSHAKE_VERSION, "capabilities": {}, "clientInfo": _CLIENT_INFO}
        message = await self._ask("initialize", params)
        if "result" not in message:
            raise WrongAnswer(f"initialize was answered with {message}")
        return message

    async def _notify_initialized(self) -> None:
        method = "notifications/initialized"
        await self._send(method, {}, {"jsonrpc": "2.0", "method": method})
        await self._posted()

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last_id += 1
        self._answer = asyncio.get_running_loop().create_future()
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": self._params(params)}
        await self._send(method, params, message)
        return await self._within_time(self._answer, method)

    async def _send(self, method: str, params: dict[str, Any], message: dict[str, Any]) -> None:
        await self._posted()
        if self._connection is None:
            self._connection = await Connection.open(self._port, self)
        body = json.dumps(message, separators=(",", ":")).encode()
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._headers(method, params).items())
        head = (
            f"POST {self._target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
            f"{headers}Content-Length: {len(body)}\r\n\r\n"
        )
        self._post = asyncio.get_running_loop().create_future()
        self._sent_at = time.perf_counter()
        self._connection.request(head.encode() + body)

    async def _posted(self) -> Response | None:
        """Wait until the last POST is answered to its end: its connection carries one request at a time."""
        if self._fault is not None:
            raise self._fault
        if self._post is None:
            return None
        if self._post.done():
            return self._post.result()
        return await self._within_time(self._post, "the end of a POST's answer")

    async def _within_time(self, future: asyncio.Future[_T], what: str) -> _T:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise WrongAnswer(f"no answer to {what} within {_ANSWER_SECONDS:.0f} s") from None

    # What arrives (``wire.Receiver``).

    def event_received(self, name: str, data: bytes) -> None:
        if name == "message":
            self._deliver(data)

    def response_finished(self, response: Response) -> None:
        if response.status >= 400:
            self.connection_failed(Refused(response))
            return
        if response.body and response.headers.get(b"content-type", b"").startswith(b"application/json"):
            self._deliver(response.body)
        if self._post is not None and not self._post.done():
            self._post.set_result(response)

    def connection_failed(self, error: Exception) -> None:
        self._fault = error
        for waiting in (self._answer, self._post):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # Only one of the two may be awaited; the other must not warn.

    def _deliver(self, data: bytes) -> None:
        message = json.loads(data)
        if "method" in message:
            return  # A notification or a question of the server: not an answer, and not measured.
        if self._answer is None or self._answer.done() or message.get("id") != self._last_id:
            self.connection_failed(WrongAnswer(f"an answer to request {message.get('id')}, which is not in flight"))
            return
        self._answered_at = time.perf_counter()
        self._answer.set_result(message)


class SseSession(Session):
    """HTTP+SSE: a stream for the answers, and POSTs that are answered 202."""

    def __init__(self, port: int, server_name: str, session_key: str) -> None:
        super().__init__(port, server_name, session_key)
        self._stream: Connection | None = None
        self._endpoint: asyncio.Future[str] | None = None

    async def open(self) -> None:
        self._endpoint = asyncio.get_running_loop().create_future()
        self._stream = await Connection.open(self._port, self)
        self._stream.request(
            f"GET {self._target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        self._target = await self._within_time(self._endpoint, "the stream's endpoint event")
        await self._initialize()
        await self._notify_initialized()

    def close(self) -> None:
        super().close()
        if self._stream is not None:
            self._stream.close()

    def event_received(self, name: str, data: bytes) -> None:
        if name == "endpoint" and self._endpoint is not None and not self._endpoint.done():
            self._endpoint.set_result(data.decode())
        else:
            super().event_received(name, data)

    def response_finished(self, response: Response) -> None:
        if response.is_event_stream:
            self.connection_failed(WireError("the server ended the stream"))
        elif self._endpoint is not None and not self._endpoint.done() and response.status < 400:
            self.connection_failed(WireError("the GET was not answered with a stream"))
        else:
            super().response_finished(response)

    def connection_failed(self, error: Exception) -> None:
        super().connection_failed(error)
        if self._endpoint is not None and not self._endpoint.done():
            self._endpoint.set_exception(error)


class HandshakeSession(Session):
    """Streamable HTTP up to 2025-11-25: a session id, and answers in JSON or on the POST's own stream."""

    def __init__(self, port: int, server_name: str, session_key: str) -> None:
        super().__init__(port, server_name, session_key)
        self._session_headers: dict[str, str] = {}

    async def open(self) -> None:
        await self._initialize()
        response = await self._posted()
        session_id = b"" if response is None else response.headers.get(b"mcp-session-id", b"")
        if not session_id:
            raise WrongAnswer("initialize was answered without an Mcp-Session-Id")
        self._session_headers = {"Mcp-Session-Id": session_id.decode(), "MCP-Protocol-Version": _HANDSHAKE_VERSION}
        await self._notify_initialized()

    def _headers(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        return self._session_headers


class StatelessSession(Session):
    """2026-07-28: every POST stands alone; the envelope of the request carries what the handshake used to."""

    is_held_by_the_server = False

    _META: Final = {
        "io.modelcontextprotocol/protocolVersion": _STATELESS_VERSION,
        "io.modelcontextprotocol/clientInfo": _CLIENT_INFO,
        "io.modelcontextprotocol/clientCapabilities": {},
    }

    async def open(self) -> None:
        message = await self._ask("server/discover", {})
        if "result" not in message:
            raise WrongAnswer(f"server/discover was answered with {message}")

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**params, "_meta": self._META}

    def _headers(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": _STATELESS_VERSION, "Mcp-Method": method}
        if "name" in params:
            headers["Mcp-Name"] = params["name"]
        return headers


ERAS: Final[dict[str, type[Session]]] = {"sse": SseSession, "2025": HandshakeSession, "2026": StatelessSession}
