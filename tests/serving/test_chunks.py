"""Chunked bodies: what is decoded, and how much framing a body may have. Malformed ones: tests.support.smuggling."""

from __future__ import annotations

import contextlib

import pytest

from gateway.serving.chunks import FREE_FRAMING_BYTES, SIZE_LINE_BYTES, TRAILER_BYTES, ChunkedBody
from gateway.serving.head import RequestRefusedError

LIMIT = 1_000_000


def decode(data: bytes, piece_bytes: int = 1_000_000, max_bytes: int = LIMIT) -> tuple[bytes, bytes]:
    """The content of a body, and what came after it."""
    body = ChunkedBody(bytearray(), max_bytes)
    for start in range(0, len(data), piece_bytes):
        if body.feed(data[start : start + piece_bytes]):
            return bytes(body.content), body.rest + data[start + piece_bytes :]
    raise AssertionError("the body has no end")


def refusal(data: bytes, max_bytes: int = LIMIT) -> tuple[int, str]:
    with pytest.raises(RequestRefusedError) as refused:
        ChunkedBody(bytearray(), max_bytes).feed(data)
    return refused.value.status, refused.value.event


def chunks(*contents: bytes, extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(content), extension, content) for content in contents)


END = b"0\r\n\r\n"


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 1000])
def test_body_is_the_same_however_it_is_cut(piece_bytes: int) -> None:
    data = chunks(b"he", b"llo", b"\r\n", b"0\r\n\r\n" * 3, extension=b';a="b"') + b"0\r\nX: 1\r\nY: 2\r\n\r\nGET /"
    assert decode(data, piece_bytes) == (b"hello\r\n" + b"0\r\n\r\n" * 3, b"GET /")


def test_empty_body() -> None:
    assert decode(END + b"rest") == (b"", b"rest")


def test_body_of_exactly_the_limit_is_read_and_one_byte_more_is_refused_from_its_size() -> None:
    assert decode(chunks(bytes(60), bytes(40)) + END, max_bytes=100)[0] == bytes(100)
    assert refusal(chunks(bytes(60)) + b"29\r\n", max_bytes=100) == (413, "body_too_large")


def test_longest_lines_are_read() -> None:
    extension = b";" + b"x" * (SIZE_LINE_BYTES - 4)
    assert decode(b"1" + extension + b"\r\nx\r\n" + END)[0] == b"x"
    assert refusal(b"1x" + extension + b"\r\nx\r\n") == (400, "bad_request")
    trailer = b"X: " + b"v" * (TRAILER_BYTES - 5) + b"\r\n"
    assert decode(b"0\r\n" + trailer + b"\r\n") == (b"", b"")
    assert refusal(b"0\r\n" + trailer + b"X: \r\n\r\n") == (400, "bad_request")


@pytest.mark.parametrize("size", [1, 2, 16, 32])
def test_many_small_chunks_are_refused(size: int) -> None:
    assert refusal(chunks(bytes(size)) * 10_000) == (400, "wasteful_body")


def test_small_body_may_come_byte_by_byte() -> None:
    assert decode(chunks(*(b"x" for _ in range(75))) + END)[0] == b"x" * 75


def test_large_body_may_come_in_chunks_of_any_usual_size() -> None:
    for size in (64, 1024, 65_536):
        assert len(decode(chunks(*(bytes(size) for _ in range(LIMIT // size))) + END)[0]) > 0.9 * LIMIT


def test_framing_never_exceeds_content_by_much() -> None:
    """The wire costs at most twice the content, and a fixed allowance."""
    body = ChunkedBody(bytearray(), LIMIT)
    piece = chunks(bytes(100), extension=b";" + b"x" * 200)
    sent = 0
    with contextlib.suppress(RequestRefusedError):
        while not body.feed(piece):
            sent += len(piece)
    assert sent < 2 * len(body.content) + FREE_FRAMING_BYTES + SIZE_LINE_BYTES
