"""The floor: a bare protocol server on uvloop that exchanges the same bytes, and does nothing else.

    python -m tests.benchmarks.floor PORT

It reads a request's head and body, decodes the JSON, and writes the answer of `simple-tools-server`'s `store-data` with
the headers that the project sends. There is no ASGI, no SDK, no session and no check. What a host costs above this is
what it does for its users; below it no host in Python can be.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any, Final, cast

import uvloop

from tests.benchmarks.workloads import STORE

_COMMON: Final = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nserver: daphne\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-accel-buffering: no\r\n"
    + _COMMON
    + b"transfer-encoding: chunked\r\n\r\n"
)
_ACCEPTED: Final = (
    b"HTTP/1.1 202 Accepted\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 8\r\n"
    + _COMMON
    + b"\r\nAccepted"
)
_SERVER_INFO: Final = {"name": "simple-tools-server", "version": "1.0.0"}


class _Connection(asyncio.Protocol):
    """One connection. Requests are whole and never pipelined, as the load client sends them."""

    def __init__(self, streams: dict[bytes, asyncio.Transport], numbers: itertools.count[int]) -> None:
        self._streams = streams
        self._numbers = numbers
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        start = head.lower().find(b"content-length:")
        length = int(head[start + 15 :].partition(b"\r\n")[0]) if start >= 0 else 0
        if len(body) < length:
            return
        self._buffer = b""
        target = head.partition(b" ")[2].partition(b" ")[0]
        if head.startswith(b"GET"):
            self._open_stream(target)
        else:
            self._take(target, json.loads(body))

    def _open_stream(self, target: bytes) -> None:
        assert self._transport is not None
        session_id = b"%032d" % next(self._numbers)
        self._streams[session_id] = self._transport
        endpoint = b"%b/messages/?session_id=%b" % (target, session_id)
        self._transport.write(_STREAM_HEAD + _event(b"endpoint", endpoint))

    def _take(self, target: bytes, message: dict[str, Any]) -> None:
        assert self._transport is not None
        answer = _answer(message)
        stream = self._streams.get(target.partition(b"session_id=")[2])
        if stream is not None:
            self._transport.write(_ACCEPTED)
            if answer:
                stream.write(_event(b"message", answer))
            return
        self._transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bmcp-session-id: %032d\r\n\r\n%b"
            % (b"200 OK" if answer else b"202 Accepted", len(answer), _COMMON, 0, answer)
        )


def _event(name: bytes, data: bytes) -> bytes:
    event = b"event: %b\r\ndata: %b\r\n\r\n" % (name, data)
    return b"%x\r\n%b\r\n" % (len(event), event)


def _answer(message: dict[str, Any]) -> bytes:
    """The answer to a message; nothing for a notification."""
    if "id" not in message:
        return b""
    params = message["params"]
    if message["method"] == "tools/call":
        text = STORE.answer(params["arguments"])
        result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    else:
        result = {"protocolVersion": params.get("protocolVersion"), "capabilities": {}, "serverInfo": _SERVER_INFO}
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}, separators=(",", ":")).encode()


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    streams: dict[bytes, asyncio.Transport] = {}
    numbers = itertools.count()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(streams, numbers), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
