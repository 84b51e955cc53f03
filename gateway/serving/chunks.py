"""Decodes a chunked request body: its chunks, its trailers, and where it ends.

Everything that two HTTP parsers could read differently is refused, as in `head`. Trailers are thrown away, but they
follow the same grammar as headers. The framing has a budget that grows with the content, so that reading a body costs
at most a few times what its content costs.

Spec: RFC 9112 section 7.1.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.serving.head import BARE_LINE_FEED, FIELD_LINE, RequestRefusedError, malformed

SIZE_LINE_BYTES: Final = 256
"""The longest line with a chunk's size and extensions."""

TRAILER_BYTES: Final = 4 * 1024
"""All trailers together."""

CHUNK_COST_BYTES: Final = 48
"""What a chunk costs the budget besides its framing: the time that it takes to read one, however small. So the chunks
of a large body have 55 bytes on average, or more."""

FREE_FRAMING_BYTES: Final = 4 * 1024
"""The budget of an empty body, which is some 75 small chunks. Every byte of content adds one byte to it."""

# A size has no sign, no prefix and no space around it. Sixteen digits fit 64 bits. Extensions are skipped.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n")


class ChunkedBody:
    """One chunked body, decoded as it arrives."""

    __slots__ = (
        "_framing_bytes",
        "_is_in_trailers",
        "_max_bytes",
        "_missing_bytes",
        "_pending",
        "_trailer_bytes",
        "content",
        "rest",
    )

    def __init__(self, content: bytearray, max_bytes: int) -> None:
        """Append to `content`, up to `max_bytes`."""
        self.content = content
        self.rest = b""
        """What came after the end of the body."""
        self._max_bytes = max_bytes
        self._framing_bytes = 0
        self._pending = b""
        """An incomplete line."""
        self._missing_bytes = 0
        """What has not come of the current chunk and the line break after it."""
        self._is_in_trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bool:
        """Decode what has come; True once the body is whole. Not to be called again after that.

        Raises:
            RequestRefusedError: the body is malformed, too long, or has too much framing for its content.
        """
        if self._pending:
            data, self._pending = self._pending + data, b""
        if self._is_in_trailers:
            return self._read_trailers(data, 0)
        content, position, length = self.content, 0, len(data)
        while position < length:
            missing = self._missing_bytes
            if missing > length - position:
                self._read_part(data[position:], missing)
                return False
            if missing:
                end_of_content = position + missing - 2
                position += missing
                if data[end_of_content:position] != b"\r\n":
                    raise malformed("A chunk of the body is longer than its size.")
                if missing > 2:
                    content += data[position - missing : end_of_content]
                self._missing_bytes = 0
                continue
            line = _SIZE_LINE.match(data, position, position + SIZE_LINE_BYTES)
            if line is None:
                self._keep_line(data[position:])
                return False
            self._framing_bytes += CHUNK_COST_BYTES + line.end() - position
            position = line.end()
            size = int(line[1], 16)
            if not size:
                self._is_in_trailers = True
                return self._read_trailers(data, position)
            if len(content) + size > self._max_bytes:
                raise RequestRefusedError(413, "body_too_large", f"The body is longer than {self._max_bytes} bytes.")
            if self._framing_bytes > FREE_FRAMING_BYTES + len(content):
                raise RequestRefusedError(400, "wasteful_body", "The body comes in too many chunks for its size.")
            self._missing_bytes = size + 2
        return False

    def _read_part(self, data: bytes, missing: int) -> None:
        """Take part of a chunk's content, perhaps with the first byte of the line break after it."""
        content_bytes = min(len(data), missing - 2)
        self.content += data[:content_bytes]
        self._missing_bytes = missing - content_bytes
        self._pending = data[content_bytes:]
        if self._pending not in (b"", b"\r"):
            raise malformed("A chunk of the body is longer than its size.")

    def _keep_line(self, line: bytes) -> None:
        """Keep a size line that has no end yet, unless it can never become one."""
        if len(line) >= SIZE_LINE_BYTES or b"\n" in line:
            raise malformed("The size of a chunk is malformed.")
        self._pending = line

    def _read_trailers(self, data: bytes, position: int) -> bool:
        while True:
            end = data.find(b"\r\n", position)
            if end < 0:
                break
            if end == position:
                self.rest = data[end + 2 :]
                return True
            self._trailer_bytes += end + 2 - position
            if self._trailer_bytes > TRAILER_BYTES or FIELD_LINE.fullmatch(data, position, end) is None:
                raise malformed("The trailers of the body are malformed or too long.")
            position = end + 2
        self._pending = data[position:]
        if self._trailer_bytes + len(self._pending) > TRAILER_BYTES or BARE_LINE_FEED.search(self._pending) is not None:
            raise malformed("The trailers of the body are malformed or too long.")
        return False
