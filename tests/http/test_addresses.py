import ipaddress

import pytest

from gateway.endpoints.disclosure import is_from_this_machine
from gateway.http.addresses import (
    counted_address,
    counted_site,
    is_loopback,
    parse_address,
    parse_forwarded_address,
    parse_network,
    refused_address,
)
from gateway.http.listening import is_local_request
from gateway.http.proxies import TrustedProxies

LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "192.168.0.1", "example.com", "", "2001:db8::1", "::ffff:10.0.0.1"]
)
def test_addresses_that_others_reach(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_every_reader_agrees_that_an_address_is_this_machines_own(address: str) -> None:
    """They disagreed on mapped addresses, which a socket that listens on IPv4 and IPv6 reports."""
    scope = {"client": (address, 1), "server": (address, 80), "headers": []}
    assert is_from_this_machine(scope)
    assert is_local_request(scope)
    assert TrustedProxies(["127.0.0.0/8", "::1"]).client_scope({**scope, "type": "http"}) is not scope


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("example.com", None),
        ("10.0.0.7:80", None),
        ("010.0.0.7", None),
        ("", None),
    ],
)
def test_address_is_read_or_is_none(text: str, expected: str | None) -> None:
    address = parse_address(text)
    assert (None if address is None else str(address)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("127.0.0.1", "127.0.0.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::/0", "::/0"),
    ],
)
def test_network_is_read(text: str, expected: str) -> None:
    assert parse_network(text) == ipaddress.ip_network(expected)


@pytest.mark.parametrize("text", ["proxy.example.com", "10.0.0.1/8", "", "10.0.0.0/33"])
def test_text_that_is_not_a_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_network(text)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7:5555", "198.51.100.7"),
        ("[2001:db8::7]:5555", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("unknown", None),
        ("_hidden:80", None),
    ],
)
def test_forwarded_address_may_have_a_port(entry: str, expected: str | None) -> None:
    assert parse_forwarded_address(entry) == expected


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1%eth0", "2001:db8:1:2::/64"),
        ("", "(no address)"),
        ("unix", "unix"),
    ],
)
def test_ipv6_clients_are_counted_by_their_network(address: str, counted: str) -> None:
    assert counted_address(address) == counted


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("2001:db8:1:ffff::1", "2001:db8:1::/48"),
        ("::ffff:10.0.0.7", None),
        ("127.0.0.1", None),
        ("", None),
    ],
)
def test_ipv6_clients_are_counted_by_their_site_too(address: str, site: str | None) -> None:
    assert counted_site(address) == site


PRIVATE = ["100.64.0.1", "10.0.0.1", "127.0.0.1", "::ffff:192.168.0.1", "fd00::1", "192.0.2.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused_where_private_ones_are(address: str) -> None:
    assert "private" in str(refused_address(address, allows_private=False))


@pytest.mark.parametrize("address", ["example.com", "93.184.216.34", "2606:2800:220:1::1", "10.0.0.1", "127.0.0.1"])
def test_names_and_ordinary_addresses_are_not_refused(address: str) -> None:
    assert refused_address(address, allows_private=True) is None
