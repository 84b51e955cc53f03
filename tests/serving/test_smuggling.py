"""Requests that two parsers could read differently: each is refused, or read as exactly one request.

Every case is followed by a second, innocent request on the same connection. A refused case must be answered by one 4xx
and the end of the connection; nothing of it, and not the innocent request either, may reach the application. A case
that is read must be answered 200 twice, in order.
"""

from __future__ import annotations

import itertools
import json
import re

import pytest

from tests.support.serving_process import Host, statuses
from tests.support.smuggling import CANARY, READ, REFUSED

NUMBERS = itertools.count()
"""Paths are numbered, so that a request which does reach the application is told from those of other tests."""


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_request_is_refused_and_nothing_of_it_is_read(host: Host, name: str) -> None:
    number = next(NUMBERS)
    with host.connect() as client:
        client.send(re.sub(rb"case|canary", rb"\g<0>%d" % number, REFUSED[name] + CANARY))
        answer = client.read_to_end()
    (status,) = statuses(answer)
    assert 400 <= status < 500
    assert b"\r\nconnection: close\r\n" in answer
    host.get(f"/after{number}")
    host.wait_until_told(request=f"/after{number}")
    assert not host.count(request=f"/case{number}")
    assert not host.count(request=f"/canary{number}")


@pytest.mark.parametrize("name", ["lines ended by bare LF", "HTTP/0.9", "TLS"])
def test_hopeless_request_is_refused_before_it_is_whole(host: Host, name: str) -> None:
    with host.connect() as client:
        client.send(REFUSED[name].removesuffix(b"\r\nHost: h\r\n\r\n"))
        client.socket.settimeout(0.7)  # Less than the deadline that would end it as well
        assert statuses(client.read_to_end()) == [400]


@pytest.mark.parametrize("name", READ)
def test_unambiguous_request_is_read_as_one_request(host: Host, name: str) -> None:
    request, body = READ[name]
    with host.connect() as client:
        client.send(request + CANARY)
        answer = client.read_to_end()
    assert statuses(answer) == [200, 200]
    first, second = (json.loads(content) for content in re.findall(rb"\{.*?\}(?=HTTP|$)", answer, re.DOTALL))
    assert (first["path"], first["body_bytes"]) == ("/case", len(body))
    assert first["body"].encode() == body
    assert (second["path"], second["body_bytes"]) == ("/canary", 0)


@pytest.mark.parametrize("name", READ)
def test_request_that_comes_byte_by_byte_is_read_the_same(host: Host, name: str) -> None:
    request, body = READ[name]
    with host.connect() as client:
        for position in range(len(request)):
            client.send(request[position : position + 1])
        status, content = client.answer()
    assert (status, content["path"], content["body"].encode()) == (200, "/case", body)
