from typing import Any

import pytest

from gateway.http.proxies import TrustedProxies


def scope(client: tuple[str, int] | None, **headers: str) -> dict[str, Any]:
    return {
        "type": "http",
        "client": client,
        "scheme": "http",
        "headers": [
            (b"host", b"inside"),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ],
    }


PROXY = ("10.0.0.1", 4711)
PROXIES = TrustedProxies(["10.0.0.0/8", "::1"])


def test_trusted_proxy_names_client_scheme_and_host() -> None:
    seen = PROXIES.client_scope(
        scope(PROXY, x_forwarded_for="198.51.100.7", x_forwarded_proto="https", x_forwarded_host="mcp.example.com")
    )
    assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
    assert [value for name, value in seen["headers"] if name == b"host"] == [b"mcp.example.com"]


@pytest.mark.parametrize("client", [("192.0.2.1", 1), None, ("not an address", 1)])
def test_nobody_elses_word_is_taken(client: tuple[str, int] | None) -> None:
    asked = scope(client, x_forwarded_for="198.51.100.7", x_forwarded_proto="https", x_forwarded_host="evil")
    assert PROXIES.client_scope(asked) is asked


def test_without_proxies_nothing_is_looked_at() -> None:
    asked = scope(PROXY, x_forwarded_for="198.51.100.7")
    assert TrustedProxies([]).client_scope(asked) is asked


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("1.2.3.4, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1, 198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("198.51.100.7:5555", "198.51.100.7"),
        ("[2001:db8::7]:5555", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("198.51.100.7, nonsense", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("198.51.100.7, , ", "198.51.100.7"),
    ],
)
def test_client_is_the_last_address_that_no_trusted_proxy_has(forwarded: str, client: str) -> None:
    assert PROXIES.client_scope(scope(PROXY, x_forwarded_for=forwarded))["client"][0] == client


def test_several_lines_are_one_list() -> None:
    asked = scope(PROXY)
    asked["headers"] += [(b"x-forwarded-for", b"1.2.3.4"), (b"x-forwarded-for", b"198.51.100.7")]
    assert PROXIES.client_scope(asked)["client"][0] == "198.51.100.7"


def test_unknown_scheme_is_ignored_and_the_proxys_own_is_the_last() -> None:
    assert PROXIES.client_scope(scope(PROXY, x_forwarded_proto="gopher"))["scheme"] == "http"
    assert PROXIES.client_scope(scope(PROXY, x_forwarded_proto="https, http"))["scheme"] == "http"


def test_unix_sockets_are_trusted_by_name_only() -> None:
    asked = scope(None, x_forwarded_for="198.51.100.7")
    assert TrustedProxies(["unix"]).client_scope(asked)["client"][0] == "198.51.100.7"
    assert PROXIES.client_scope(asked) is asked


def test_mapped_addresses_are_those_they_map() -> None:
    assert PROXIES.client_scope(scope(("::ffff:10.0.0.1", 1), x_forwarded_for="198.51.100.7"))["client"][0] == (
        "198.51.100.7"
    )


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError):
        TrustedProxies(["proxy.example.com"])
