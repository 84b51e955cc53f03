import json
import os
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from gateway.http.listening import (
    is_local_request,
    listening_addresses,
    require_keys_or_loopback,
)
from tests.support.processes import ROOT


@override_settings(GUMCP_AUTH="open", GUMCP_PUBLIC_URL="")
def test_host_without_keys_starts_on_loopback_only() -> None:
    require_keys_or_loopback([])
    require_keys_or_loopback(["127.0.0.1", "::1"])
    with pytest.raises(ImproperlyConfigured, match=r"listen on 0\.0\.0\.0.*GUMCP_AUTH=keys"):
        require_keys_or_loopback(["127.0.0.1", "0.0.0.0"])


@override_settings(GUMCP_AUTH="open", GUMCP_PUBLIC_URL="https://mcp.example.com")
def test_host_without_keys_does_not_start_with_production_settings() -> None:
    with pytest.raises(ImproperlyConfigured, match="https"):
        require_keys_or_loopback(["127.0.0.1"])


@override_settings(GUMCP_AUTH="open", GUMCP_PUBLIC_URL="https://mcp.example.com", GUMCP_ALLOW_NETWORK_WITHOUT_KEYS=True)
def test_permission_in_as_many_words_is_obeyed() -> None:
    require_keys_or_loopback(["0.0.0.0"])


@override_settings(GUMCP_AUTH="keys", GUMCP_PUBLIC_URL="https://mcp.example.com")
def test_host_with_keys_starts_anywhere() -> None:
    require_keys_or_loopback(["0.0.0.0"])


@pytest.mark.parametrize(
    ("server", "is_local"),
    [
        (("127.0.0.1", 80), True),
        (("::1", 80), True),
        (("192.0.2.1", 80), False),
        (("/run/x.sock", None), True),
        (None, True),
    ],
)
def test_request_says_which_address_it_reached(server: tuple[str, int | None] | None, is_local: bool) -> None:
    assert is_local_request({"server": server}) is is_local


DAPHNE_LINES = {
    "site:application": ["127.0.0.1"],
    "-b 0.0.0.0 site:application": ["0.0.0.0"],
    "-p 9000 site:application": ["127.0.0.1"],
    "--bind :: site:application": ["::"],
    "-u /run/x.sock site:application": [],
    "-u /run/x.sock -b 10.0.0.1 site:application": ["10.0.0.1"],
    "-e tcp:port=8000:interface=127.0.0.1 site:application": ["127.0.0.1"],
    "-e tcp:port=8000 site:application": ["0.0.0.0"],
    r"-e tcp6:port=8000:interface=\:\:1 site:application": ["::1"],
    "-e unix:/run/x.sock site:application": [],
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("program", ["/somewhere/bin/daphne", "/lib/daphne/__main__.py"])
def test_daphnes_command_line_is_read_as_daphne_does(program: str) -> None:
    # In a process of its own: importing daphne.cli installs a Twisted reactor.
    script = """
import json, sys
import daphne.cli
from gateway.http.listening import listening_addresses
sys.argv = [sys.argv[1]]
print(json.dumps({line: listening_addresses(line.split()) for line in json.loads(sys.stdin.read())}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, program],
        input=json.dumps(list(DAPHNE_LINES)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == DAPHNE_LINES


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        ("site:application", ["127.0.0.1"]),
        ("--host 0.0.0.0 site:application", ["0.0.0.0"]),
        ("--uds /run/x.sock site:application", []),
    ],
)
def test_uvicorns_command_line_is_read_as_uvicorn_does(
    line: str, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn.main")
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/uvicorn"])
    assert listening_addresses(line.split()) == addresses
    monkeypatch.setenv("UVICORN_HOST", "10.0.0.1")
    assert listening_addresses(["site:application"]) == ["10.0.0.1"]


def test_another_programs_command_line_says_nothing() -> None:
    assert listening_addresses(["--host", "0.0.0.0"]) == []
