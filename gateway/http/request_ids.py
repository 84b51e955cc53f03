"""The id that a proxy gives to a request, to find it in the proxy's log and in ours."""

import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = b"x-request-id"

_VALUE: Final = re.compile(rb"[0-9A-Fa-f-]{8,64}")
"""What proxies send: hexadecimal numbers and UUIDs. Anything else is left out, since a client may have chosen it."""


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The request's id; empty if it has none."""
    for name, value in headers:
        if name == HEADER and _VALUE.fullmatch(value):
            return value.decode("ascii")
    return ""
