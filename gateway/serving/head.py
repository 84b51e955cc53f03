"""Reads the head of an HTTP/1.1 request: bytes become a `RequestHead`, or the request is refused.

Everything that two HTTP parsers could read differently is refused, because the proxy in front may be the other parser.
What is accepted has one meaning. The grammar is two lists of what is allowed, one for the request line and one for a
header line, so that a byte nobody thought of is refused.

Spec: RFC 9112 (sections 2.2, 3, 5.1, 5.2, 6.1, 6.3), RFC 9110 section 5.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.serving.limits import ServingEvent

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb"{1,32}) (/[!-~]*|[Hh][Tt][Tt][Pp][Ss]?://[!-~]+) HTTP/(1\.[01])")
"""Origin-form and absolute-form. Only proxies need the other forms of a target."""

# 0x85 is obs-text in RFC 9110, but Daphne refuses it (daphne.utils.INVALID_HEADER_VALUE_BYTES) because str.splitlines
# breaks a line there.
FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"+):([^\x00-\x08\x0a-\x1f\x7f\x85]*)")
BARE_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")

_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
"""Eighteen digits fit 64 bits everywhere. int() itself raises for more than 4 300."""

_HOST: Final = re.compile(rb"[A-Za-z0-9._~%\-]+(:[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z_\-]+\](:[0-9]*)?")
_AUTHORITY_END: Final = re.compile(rb"[/?]")
_FIRST_BYTE: Final = re.compile(_TOKEN)

_INTERPRETED: Final = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"),
)
_WITHHELD: Final = frozenset((b"daphne-root-path",))
"""Daphne lets a client set `root_path` by this header."""

_REPEATED_BYTES: Final = 48
"""Header lines that are shorter are remembered, but for those that may have a secret: clients repeat them."""

_SECRET: Final = (b"authorization", b"cookie")


class RequestRefusedError(Exception):
    """The server itself answers the request with `status` and ends the connection."""

    def __init__(self, status: int, event: ServingEvent, message: str) -> None:
        """`message` is for the client's author."""
        super().__init__(status, event, message)
        self.status = status
        self.event: ServingEvent = event
        self.message = message


def malformed(message: str) -> RequestRefusedError:
    """The refusal of a request that breaks HTTP's rules."""
    return RequestRefusedError(400, "bad_request", message)


@dataclass(slots=True)
class RequestHead:
    """A request whose body has not been read."""

    method: str
    target: bytes
    """Path and query, also where the request had an absolute-form target."""
    http_version: str
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, in the order of arrival."""
    body_bytes: int | None
    """None: chunked."""
    keeps_alive: bool
    expects_continue: bool


def parse_head(head: bytes, max_fields: int) -> RequestHead:
    """Read the request line and headers, without the empty line that ends them.

    Raises:
        RequestRefusedError
    """
    lines = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise malformed("The request line is malformed.")
    if len(lines) > max_fields + 1:
        raise RequestRefusedError(431, "bad_request", f"The request has more than {max_fields} header lines.")
    method, target, version = request_line.groups()
    del lines[0]

    headers: list[tuple[bytes, bytes]] = []
    interpreted: dict[bytes, list[bytes]] = {}
    for line in lines:
        is_repeated = len(line) < _REPEATED_BYTES and not line[:13].lower().startswith(_SECRET)
        field = _repeated_field(line) if is_repeated else _field(line)
        if field.is_interpreted:
            name, value = field.header
            interpreted.setdefault(name, []).append(value)
        if field.is_passed_on:
            headers.append(field.header)

    is_http_11 = version == b"1.1"
    hosts = interpreted.get(b"host", [])
    _check_host(hosts, required=is_http_11)
    if not target.startswith(b"/"):
        authority, target = _split_absolute(target)
        if not hosts:
            headers.append((b"host", authority))
        # RFC 9112 section 3.2: a client must send both alike. Where they differ, the proxy in front may have looked at
        # the one and this host would obey the other.
        elif hosts[0].lower() != authority.lower():
            raise malformed("The request's target names another host than its Host header.")
    for value in interpreted.get(b"upgrade", ()):
        # Other upgrades, h2c among them, are ignored as RFC 9110 section 7.8 allows; HTTP libraries offer it with
        # ordinary requests. A WebSocket client would take the stream that a plain GET opens for an error of ours.
        if b"websocket" in value.lower():
            raise malformed("This host does not speak WebSocket.")
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


class _Field(NamedTuple):
    """One header line."""

    header: tuple[bytes, bytes]
    """Name in lower case, and value."""
    is_interpreted: bool
    """Whether it says something to the server itself."""
    is_passed_on: bool
    """Whether the application may see it."""


def _field(line: bytes) -> _Field:
    # No match: a folded line (RFC 9112 section 5.2), a space before the colon (5.1), NUL, a bare CR or LF.
    field = FIELD_LINE.fullmatch(line)
    if field is None:
        raise malformed("A header line is malformed.")
    name, value = field.groups()
    name = name.lower()
    # CVE-2015-0219: WSGI-like environments cannot tell "_" from "-". Daphne drops such headers too.
    is_passed_on = b"_" not in name and name not in _WITHHELD
    return _Field((name, value.strip(b" \t")), name in _INTERPRETED, is_passed_on)


_repeated_field = lru_cache(maxsize=1024)(_field)


def is_malformed(partial_head: bytearray, checked_bytes: int) -> bool:
    """Whether no further byte can make this a request: HTTP/0.9, bare line feeds, TLS on the plain port.

    `checked_bytes`: how much of it has passed this check before. A head that comes byte by byte is read only once.
    """
    if not partial_head:
        return False
    if _FIRST_BYTE.match(partial_head) is None or BARE_LINE_FEED.search(partial_head, checked_bytes) is not None:
        return True
    end_of_line = partial_head.find(b"\r\n")
    is_new = end_of_line >= 0 and checked_bytes <= end_of_line + 1
    return is_new and _REQUEST_LINE.fullmatch(partial_head, 0, end_of_line) is None


def _check_host(values: list[bytes], *, required: bool) -> None:
    if not values and not required:
        return
    if len(values) != 1 or _HOST.fullmatch(values[0]) is None:
        raise malformed("The request must have one Host header, and that must be a name or an address.")


def _split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """The authority of an absolute-form target, and the target in origin-form."""
    rest = target.partition(b"://")[2]
    end = _AUTHORITY_END.search(rest)
    authority, path = (rest, b"/") if end is None else (rest[: end.start()], rest[end.start() :])
    if _HOST.fullmatch(authority) is None:
        raise malformed("The request's target must name a host.")
    return authority, path if path.startswith(b"/") else b"/" + path


def _body_bytes(lengths: list[bytes], codings: list[bytes], is_http_11: bool) -> int | None:
    if codings:
        # RFC 9112 section 6.1: with a length beside it, or in HTTP/1.0, the framing is faulty. "identity" is not a
        # coding any more.
        if lengths or not is_http_11 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise malformed("Transfer-Encoding must be chunked, without Content-Length beside it.")
        return None
    if not lengths:
        return 0
    # RFC 9112 section 6.3 allows to merge equal lengths. Well-behaved clients send one.
    if len(lengths) > 1 or _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise malformed("Content-Length must be one number.")
    return int(lengths[0])
