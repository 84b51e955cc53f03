"""What a server's handlers see of a request whose key is hidden from them."""

from urllib.parse import quote

import pytest

from gateway.access.grants import Grant, KeyFacts
from gateway.access.hiding import scope_for_server
from gateway.access.identity import Identity
from gateway.access.keys import key_digest, make_key
from gateway.access.limits import RateLimits

KEY = make_key().text
ENCODED = "".join(f"%{ord(character):02x}" for character in KEY)


def identity(*, is_hidden: bool = True) -> Identity:
    facts = KeyFacts(1, KEY[:14], b"", "ada", None, None, is_active=True)
    return Identity("ada", None if is_hidden else KEY, Grant(facts, 0.0, RateLimits({})), key_digest(KEY))


def scope(value: str, query: bytes = b"page=2") -> dict[str, object]:
    return {
        "path": f"/time/ada:{KEY}",
        "raw_path": f"/time/ada:{KEY}".encode(),
        "query_string": query,
        "headers": [(b"x-copy", value.encode()), (b"authorization", b"Bearer x"), (b"x-other", b"50%25 of it")],
        "url_route": {"args": (), "kwargs": {"server_name": "time", "session_key": f"ada:{KEY}"}},
    }


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f"/time/ada:{KEY}", id="X-Original-URI"),
        pytest.param(f"/time/{quote(f'ada:{KEY}')}", id="colon encoded"),
        pytest.param(f"/time/ada:{KEY.replace('_', '%5F')}", id="part of the key encoded"),
        pytest.param(ENCODED, id="each character encoded"),
        pytest.param(f"/auth?rd={quote(quote(ENCODED))}", id="encoded three times"),
        pytest.param(f"Bearer {KEY}", id="X-Forwarded-Authorization"),
    ],
)
def test_copy_of_the_key_in_any_header_or_in_the_query_is_dropped(value: str) -> None:
    seen = scope_for_server(scope(value, query=value.encode()), identity())
    assert seen["headers"] == [(b"x-other", b"50%25 of it")]
    assert (seen["path"], seen["raw_path"], seen["query_string"]) == ("/time/ada", b"/time/ada", b"")
    assert KEY not in str(seen)


def test_headers_and_query_without_the_key_stay() -> None:
    seen = scope_for_server(scope("/time/ada:another%3Akey"), identity())
    assert seen["headers"] == [(b"x-copy", b"/time/ada:another%3Akey"), (b"x-other", b"50%25 of it")]
    assert seen["query_string"] == b"page=2"


def test_request_stays_as_it_came_where_keys_are_not_hidden() -> None:
    came = scope(f"/time/ada:{KEY}")
    assert scope_for_server(came, identity(is_hidden=False)) is came
