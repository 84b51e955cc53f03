"""The head of an HTTP/1.1 request: bytes to a `RequestHead`, or a refusal.

Everything that two HTTP parsers could read differently is refused, because the proxy in front may be the other parser:
what passes here has one meaning. The grammar is two whitelists, one for the request line and one for a header line, so
that a byte nobody thought of is refused and not let through.

Spec: RFC 9112 (sections 2.2, 3, 5.1, 5.2, 6.1, 6.3), RFC 9110 section 5.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.serving.limits import ServingEvent

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) (/[!-~]*) HTTP/(1\.[01])")
"""Origin-form only: an absolute-form target would name a second host, and only proxies need the other forms."""

# 0x85 is obs-text in RFC 9110, but Daphne refuses it (daphne.utils.INVALID_HEADER_VALUE_BYTES) as str.splitlines breaks
# a line at it.
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"+):([^\x00-\x08\x0a-\x1f\x7f\x85]*)")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
"""Eighteen digits fit 64 bits everywhere; int() itself raises for more than 4 300."""
_HOST = re.compile(rb"[A-Za-z0-9._~%\-]+(:[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z_\-]+\](:[0-9]*)?")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_FIRST_BYTE = re.compile(_TOKEN)

_INTERPRETED = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"),
)
_WITHHELD = frozenset((b"daphne-root-path",))
"""Daphne lets a client set `root_path` by this header."""


class RequestRefusedError(Exception):
    """The request is answered `status` by the server itself and the connection ends."""

    def __init__(self, status: int, event: ServingEvent) -> None:
        super().__init__(status, event)
        self.status = status
        self.event: ServingEvent = event


@dataclass(slots=True)
class RequestHead:
    """A request whose body has not been read."""

    method: str
    target: bytes
    http_version: str
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, in the order of arrival."""
    body_bytes: int | None
    """None: chunked."""
    keeps_alive: bool
    expects_continue: bool


def parse_head(head: bytes, max_fields: int) -> RequestHead:
    """Read request line and headers, without the empty line that ends them.

    Raises `RequestRefusedError`.
    """
    lines = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise RequestRefusedError(400, "bad_request")
    if len(lines) > max_fields + 1:
        raise RequestRefusedError(431, "bad_request")
    method, target, version = request_line.groups()
    del lines[0]

    headers: list[tuple[bytes, bytes]] = []
    interpreted: dict[bytes, list[bytes]] = {}
    for line in lines:
        # No match: a folded line (RFC 9112 section 5.2), a space before the colon (5.1), NUL, a bare CR or LF.
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            raise RequestRefusedError(400, "bad_request")
        name, value = field.groups()
        name = name.lower()
        value = value.strip(b" \t")
        if name in _INTERPRETED:
            interpreted.setdefault(name, []).append(value)
        # CVE-2015-0219: WSGI-like environments cannot tell "_" from "-". Daphne drops such headers too.
        if b"_" not in name and name not in _WITHHELD:
            headers.append((name, value))

    is_http_11 = version == b"1.1"
    _check_host(interpreted.get(b"host", []), required=is_http_11)
    for value in interpreted.get(b"upgrade", ()):
        # Any other upgrade, h2c among them, is ignored as RFC 9110 section 7.8 allows; HTTP libraries offer it with
        # ordinary requests. A WebSocket client would take the stream that a plain GET opens for an error of ours.
        if b"websocket" in value.lower():
            raise RequestRefusedError(400, "bad_request")
    body_bytes = _body_bytes(
        interpreted.get(b"content-length", []), interpreted.get(b"transfer-encoding", []), is_http_11
    )
    connection = b",".join(interpreted.get(b"connection", ())).lower()
    return RequestHead(
        method=method.decode("ascii"),
        target=target,
        http_version=version.decode("ascii"),
        headers=headers,
        body_bytes=body_bytes,
        keeps_alive=is_http_11 and b"close" not in connection,
        expects_continue=is_http_11
        and [value.lower() for value in interpreted.get(b"expect", ())] == [b"100-continue"],
    )


def is_hopeless(partial_head: bytearray) -> bool:
    """Tell early that no further byte can make this a request: HTTP/0.9, bare line feeds, TLS on the plain port."""
    if not partial_head:
        return False
    if _FIRST_BYTE.match(partial_head) is None or _BARE_LINE_FEED.search(partial_head) is not None:
        return True
    end_of_line = partial_head.find(b"\r\n")
    return end_of_line >= 0 and _REQUEST_LINE.fullmatch(partial_head, 0, end_of_line) is None


def _check_host(values: list[bytes], *, required: bool) -> None:
    if not values and not required:
        return
    if len(values) != 1 or _HOST.fullmatch(values[0]) is None:
        raise RequestRefusedError(400, "bad_request")


def _body_bytes(lengths: list[bytes], codings: list[bytes], is_http_11: bool) -> int | None:
    if codings:
        # RFC 9112 section 6.1: with a length beside it, or in HTTP/1.0, the framing is faulty. "identity" is no coding.
        if lengths or not is_http_11 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise RequestRefusedError(400, "bad_request")
        return None
    if not lengths:
        return 0
    # RFC 9112 section 6.3: equal lengths may be merged; nobody who means well sends two.
    if len(lengths) > 1 or _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise RequestRefusedError(400, "bad_request")
    return int(lengths[0])
