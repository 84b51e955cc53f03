"""HTTP/1.1 on a raw socket, just enough of it for a load client: keep-alive, content lengths, chunks and SSE events.

What the messages mean is in ``eras.py``. A general HTTP client costs more CPU per call than the servers measured here,
and on a machine with few cores it would measure itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol, cast

_EVENT_STREAM = b"text/event-stream"


class WireError(Exception):
    """The peer sent something that is not HTTP/1.1, or closed while an answer was due."""


@dataclass(slots=True)
class Response:
    """One response; ``body`` is empty for an event stream, whose events were handed over as they came."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get(b"content-type", b"").startswith(_EVENT_STREAM)


class Receiver(Protocol):
    """Who is told what arrived. All are called from the event loop, in the order of the bytes."""

    def event_received(self, name: str, data: bytes) -> None: ...

    def response_finished(self, response: Response) -> None: ...

    def connection_failed(self, error: Exception) -> None: ...


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._events = b""
        self._response: Response | None = None
        self._read = self._read_head
        self._wanted_bytes = 0
        self._is_waiting = False
        self._is_closing = False

    @classmethod
    async def open(cls, port: int, receiver: Receiver) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(receiver), "127.0.0.1", port)
        return connection

    def request(self, head_and_body: bytes) -> None:
        """Send one whole request. The one before it must have been answered: requests are never pipelined."""
        if self._transport is None or self._transport.is_closing():
            raise WireError("the server closed a keep-alive connection between two requests")
        if self._is_waiting:
            raise WireError("a request was sent before the last one was answered")
        self._is_waiting = True
        self._transport.write(head_and_body)

    def close(self) -> None:
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._buffer and self._read():
                pass
        except (WireError, ValueError) as error:
            self._is_closing = True
            self._receiver.connection_failed(WireError(f"not the HTTP that was expected: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_closing:
            return
        if self._response is not None and self._read == self._read_until_close:
            self._finish()
        elif self._is_waiting:
            self._receiver.connection_failed(exc or WireError("the server closed before it had answered"))

    # The parser: each step takes what it needs from the buffer, and returns whether there may be more to do.

    def _read_head(self) -> bool:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return False
        if not self._is_waiting:
            raise WireError("bytes that no request asked for")
        status_line, *lines = head.split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        self._buffer = rest
        response = self._response = Response(int(status_line[9:12]), headers)
        self._events = b""
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._read = self._read_chunk_size
        elif b"content-length" in headers:
            self._wanted_bytes = int(headers[b"content-length"])
            self._read = self._read_fixed
            return self._read_fixed()
        elif response.status in (204, 304):
            self._finish()
        else:
            self._read = self._read_until_close
        return True

    def _read_fixed(self) -> bool:
        if len(self._buffer) < self._wanted_bytes:
            return False
        data, self._buffer = self._buffer[: self._wanted_bytes], self._buffer[self._wanted_bytes :]
        self._take(data)
        self._finish()
        return True

    def _read_chunk_size(self) -> bool:
        line, separator, rest = self._buffer.partition(b"\r\n")
        if not separator:
            return False
        self._buffer = rest
        self._wanted_bytes = int(line.partition(b";")[0], 16) + 2
        self._read = self._read_chunk
        return True

    def _read_chunk(self) -> bool:
        wanted = self._wanted_bytes
        if len(self._buffer) < wanted:
            return False
        data, self._buffer = self._buffer[: wanted - 2], self._buffer[wanted:]
        if data:
            self._take(data)
            self._read = self._read_chunk_size
        else:
            self._finish()
        return True

    def _read_until_close(self) -> bool:
        data, self._buffer = self._buffer, b""
        self._take(data)
        return False

    def _take(self, data: bytes) -> None:
        response = cast(Response, self._response)
        if not response.is_event_stream:
            response.chunks.append(data)
            return
        # The SDK ends lines with CRLF, others with LF; a CR whose LF has not come yet stays in the rest.
        *blocks, self._events = (self._events + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            name, lines = "message", []
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    lines.append(line[5:].removeprefix(b" "))
                elif line.startswith(b"event:"):
                    name = line[6:].strip().decode()
            if lines:
                self._receiver.event_received(name, b"\n".join(lines))

    def _finish(self) -> None:
        response = cast(Response, self._response)
        response.body = b"".join(response.chunks)
        self._response, self._read, self._is_waiting = None, self._read_head, False
        self._receiver.response_finished(response)
