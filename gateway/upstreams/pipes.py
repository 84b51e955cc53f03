"""JSON-RPC messages as lines on a pair of pipes, as the SDK's message loops read and write them.

Used at both ends: by the host for a child (`child`), and by the program of an isolated folder (`gateway.isolated`). The
SDK's own `stdio_server` hands each line to a thread and back, which costs more than the call itself.
"""

import asyncio
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from gateway.json_size import has_too_many_values

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""The longest message. Real results pass asyncio's default of 64 KiB."""

MAX_NOISE_CHARACTERS: Final = 2000
"""How much is kept of a line that is not a message."""

_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*[,}]')

_ID_BYTES: Final = 100
"""How far from the ends of a line the id of a message is looked for. Senders put it first or last."""


class _Stream:
    """What the SDK's streams share. Whoever opened the pipe closes it."""

    async def aclose(self) -> None:
        """Do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class MessageReader(_Stream):
    """The messages of a pipe. Lines that are not messages go to `on_noise`."""

    def __init__(
        self,
        lines: asyncio.StreamReader,
        on_noise: Callable[[str], object],
        on_too_long: Callable[[], object],
        max_values: int | None = None,
    ) -> None:
        """`on_too_long` is called when a line is longer than the reader's limit; nothing can be read after it.

        A message with more than `max_values` JSON values is not decoded. If it answers a request, that request gets an
        error.
        """
        self._lines = lines
        self._on_noise = on_noise
        self._on_too_long = on_too_long
        self._max_values = max_values

    async def receive(self) -> SessionMessage | Exception:
        """Read the next message.

        Raises:
            anyio.EndOfStream: the pipe was closed at its other end.
        """
        while True:
            try:
                line = await self._lines.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                raise anyio.EndOfStream from None
            except asyncio.LimitOverrunError:
                self._on_too_long()
                raise anyio.EndOfStream from None
            if self._max_values is not None and has_too_many_values(line, self._max_values):
                refusal = f"A message with more than {self._max_values} JSON values was refused."
                self._on_noise(refusal)
                if (request_id := _id_of(line)) is None:
                    continue
                return SessionMessage(
                    JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=INTERNAL_ERROR, message=refusal))
                )
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValidationError:
                text = line[:MAX_NOISE_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
                if text.strip():
                    self._on_noise(text)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


def _id_of(line: bytes) -> int | None:
    """The id of a response that is too large to decode, if it stands near one of its ends.

    A wrong guess costs only the process that wrote the line: it answers another of its own requests.
    """
    found = _ID.search(line[:_ID_BYTES]) or _ID.search(line[-_ID_BYTES:])
    return None if found is None else int(found[1])


class MessageWriter(_Stream):
    """Writes messages to a pipe, all that come in one turn of the loop at once: each write wakes the other process."""

    def __init__(self, pipe: asyncio.StreamWriter) -> None:
        self._pipe = pipe
        self._unwritten: list[bytes] = []

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message as one line, and wait while the other end does not read.

        Raises:
            anyio.BrokenResourceError: the other end has gone.
        """
        if self._pipe.is_closing():
            raise anyio.BrokenResourceError
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        self._unwritten += (text.encode("utf-8", "surrogatepass"), b"\n")
        try:
            await self._pipe.drain()
        except OSError:
            raise anyio.BrokenResourceError from None

    def _write(self) -> None:
        data, self._unwritten = b"".join(self._unwritten), []
        if not self._pipe.is_closing():
            self._pipe.write(data)


async def open_reader(pipe: Any, limit: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """Read a pipe in the running loop. Close the transport when done."""
    lines = asyncio.StreamReader(limit=limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), pipe)
    return lines, transport


async def open_writer(pipe: BinaryIO | Any) -> asyncio.StreamWriter:
    """Write to a pipe in the running loop."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    return asyncio.StreamWriter(transport, protocol, None, loop)
