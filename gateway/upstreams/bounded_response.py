"""The body of a remote server's response, within the bounds of one message.

Lives here: the bounds on the bytes and on the JSON values of an answer or an event, counted after decompression. Not
here: what the messages say.
"""

import re
from collections.abc import AsyncIterator
from typing import Final

import httpx2

from gateway.conf import conf
from gateway.json_size import SHORT_BYTES, has_too_many_values

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The longest answer or event. Calls of commands have the same bound."""

ENCODINGS: Final = "gzip, deflate"
"""How a response may be compressed. Others can make gigabytes of a few bytes in one step."""

_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class AnswerTooLarge(httpx2.StreamError):
    """An answer is refused; the conversation goes on."""


class BoundedBody(httpx2.AsyncByteStream):
    """Reads a response's body, decompressed, as far as it stays within the bounds."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._is_stream = response.headers.get("content-type", "").startswith("text/event-stream")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces of an event stream, or the whole of another body.

        Raises:
            AnswerTooLarge, httpx2.SSEError: the answer or an event is too large.
        """
        encoding = self._response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise AnswerTooLarge(f"The answer is compressed in a way that was not asked for: {encoding[:40]}.")
        if self._is_stream:
            async for piece in self._events():
                yield piece
        else:
            yield await self._whole()

    async def _whole(self) -> bytes:
        body = bytearray()
        async for piece in self._response.aiter_bytes():
            body += piece
            if len(body) > MAX_MESSAGE_BYTES:
                raise AnswerTooLarge(f"The answer is longer than {MAX_MESSAGE_BYTES} bytes.")
        if has_too_many_values(bytes(body), conf.max_message_values):
            raise AnswerTooLarge(f"The answer has more than {conf.max_message_values} JSON values.")
        return bytes(body)

    async def _events(self) -> AsyncIterator[bytes]:
        """Pass on whole events. Those that come together are looked at together, and one by one only if they are large.

        The reader behind this one bounds the bytes of an event; here they are bounded while one is being collected.
        """
        begun = bytearray()
        async for piece in self._response.aiter_bytes():
            begun += piece
            end = 0
            # The end of an event may be divided between two pieces.
            for found in _EVENT_END.finditer(begun, max(0, len(begun) - len(piece) - 3)):
                end = found.end()
            whole = bytes(begun[:end])
            del begun[:end]
            if len(begun) > MAX_MESSAGE_BYTES:
                raise httpx2.SSEError(f"An event is longer than {MAX_MESSAGE_BYTES} bytes.")
            if len(whole) > SHORT_BYTES:
                for event in _EVENT_END.split(whole):
                    _require_few_values(event)
            if whole:
                yield whole
        if begun:
            # The reader may find an event in it all the same: it knows more kinds of line ends.
            _require_few_values(bytes(begun))
            yield bytes(begun)

    async def aclose(self) -> None:
        """Close the response's connection, or give it back."""
        await self._response.aclose()


def _require_few_values(event: bytes) -> None:
    if has_too_many_values(event, conf.max_message_values):
        raise httpx2.SSEError(f"An event has more than {conf.max_message_values} JSON values.")


def bounded(response: httpx2.Response) -> httpx2.Response:
    """The same response with a bounded body."""
    headers = [
        (name, value)
        for name, value in response.headers.raw
        if name.lower() not in (b"content-encoding", b"content-length")
    ]
    return httpx2.Response(
        response.status_code, headers=headers, stream=BoundedBody(response), extensions=response.extensions
    )
