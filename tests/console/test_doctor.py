"""`manage.py doctor` against a host, and against the same host behind proxies that break one thing each."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from gateway.access.keys import make_key
from tests.support.certificates import write_certificate
from tests.support.deadlines import WAIT_SECONDS
from tests.support.faulty_proxy import faulty_proxy
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, issue
from tests.support.processes import BUNDLED_SERVERS, free_port


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    data_dir = tmp_path_factory.mktemp("doctor")
    shutil.copy(migrated_database, data_dir / "gumcp.sqlite3")
    return data_dir


@pytest.fixture(scope="module")
def key(data_dir: Path) -> IssuedKey:
    return issue(data_dir, "ada")


@pytest.fixture(scope="module")
def host(start_host: StartHost, data_dir: Path, key: IssuedKey) -> Iterator[HostProcess]:
    servers_file = data_dir / "mcp.json"
    servers_file.write_text('{"mcpServers": {"broken": {"command": "/no/such/command"}}}')
    settings = {"GUMCP_AUTH": "keys", "GUMCP_PING_SECONDS": "0.2s", "GUMCP_SERVERS_FILE": str(servers_file)}
    with start_host(data_dir, server_dirs=BUNDLED_SERVERS, metrics=False, **settings) as host:
        yield host


def doctor(url: str, *options: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("doctor", url, "--wait", "2", "--silence", "2", *options, stdout=out)
    except SystemExit as error:
        return int(error.code or 0), out.getvalue()
    return 0, out.getvalue()


def causes(url: str, *options: str) -> dict[str, str]:
    """What is at fault -> the cause."""
    status, out = doctor(url, "--json", *options)
    found: list[dict[str, Any]] = json.loads(out)
    faults = {finding["subject"]: finding["cause"] for finding in found if finding["cause"]}
    assert status == (1 if faults else 0)
    return faults


def test_every_client_connects_to_a_sound_host_and_no_key_is_printed_or_logged(
    host: HostProcess, key: IssuedKey, caplog: pytest.LogCaptureFixture
) -> None:
    status, out = doctor(f"{host.base_url}/time/{key.session_key}")
    assert status == 0, out
    assert "skipped" not in out
    for client in (
        "claude.ai",
        "ChatGPT",
        "Claude Code",
        "VS Code",
        "Cursor",
        "mcp-remote",
        "2024-11-05",
        "2026-07-28",
    ):
        assert client in out
    assert "comment after" in out
    assert key.key not in out + caplog.text


def test_clients_with_the_key_in_their_url_are_skipped_if_nobody_says_whose_key_it_is(
    host: HostProcess, key: IssuedKey
) -> None:
    status, out = doctor(host.base_url, "--key", key.key, "--server", "time", "--silence", "0")
    assert status == 0, out
    assert out.count("skipped ") == 3


@pytest.mark.parametrize(
    ("fault", "subject", "cause"),
    [
        ("buffering", "event stream", "a buffering proxy"),
        ("no comments", "event stream", "a buffering proxy"),
        ("redirect on POST", "Cursor", "a redirect"),
        ("text 404", "404 answers", "a 404 that is not JSON"),
        ("foreign name", "host", "a wrong public URL"),
        ("another site", "host", "a wrong public URL"),
        ("no session id", "Claude Code", "a lost header"),
        ("no authorization", "Claude Code", "a lost header"),
        ("compression", "event stream", "a compressed event stream"),
    ],
)
def test_fault_of_a_proxy_is_named(host: HostProcess, key: IssuedKey, fault: str, subject: str, cause: str) -> None:
    with faulty_proxy(host.port, fault) as address:
        found = causes(f"{address}/time/{key.session_key}")
    assert found[subject] == cause
    assert set(found.values()) == {cause}


def test_proxy_without_a_fault_has_none(host: HostProcess, key: IssuedKey) -> None:
    with faulty_proxy(host.port, "none") as address:
        assert causes(f"{address}/time/{key.session_key}") == {}


def test_host_that_does_not_know_the_path_of_its_public_url_is_named(host: HostProcess, key: IssuedKey) -> None:
    with faulty_proxy(host.port, "under a path") as address:
        found = causes(f"{address}/below/time/{key.session_key}")
    assert found["event stream"] == "a wrong public URL"
    assert set(found.values()) == {"a wrong public URL"}


def test_wrong_key_and_missing_key_are_named(host: HostProcess) -> None:
    assert set(causes(f"{host.base_url}/time/ada:{make_key().text}").values()) == {"a wrong key"}
    assert causes(f"{host.base_url}/time") == {"key": "no key"}


def test_host_that_names_its_servers_to_good_keys_only_is_recognised(host: HostProcess, key: IssuedKey) -> None:
    with faulty_proxy(host.port, "none") as address:
        assert doctor(address, "--key", key.key, "--silence", "0")[0] == 0
        assert causes(address, "--key", make_key().text) == {"host": "a wrong key"}
        assert causes(address) == {"host": "no key"}
        assert set(causes(f"{address}/time/ada:{make_key().text}").values()) == {"a wrong key"}


def test_server_that_the_host_does_not_have_is_named(host: HostProcess, key: IssuedKey) -> None:
    assert causes(f"{host.base_url}/nothing", "--key", key.key) == {"host": "an unknown server"}


def test_server_that_the_key_is_for_is_chosen(host: HostProcess, data_dir: Path) -> None:
    scoped = issue(data_dir, "ada", {"time": None})
    status, out = doctor(host.base_url, "--key", scoped.key, "--silence", "0")
    assert status == 0, out
    assert "with 1 servers for this caller; using time" in out
    assert causes(host.base_url, "--key", scoped.key, "--server", "everything") == {"host": "an unknown server"}


def test_key_for_servers_that_the_host_does_not_have_is_named(host: HostProcess, data_dir: Path) -> None:
    scoped = issue(data_dir, "ada", {"elsewhere": None})
    assert causes(host.base_url, "--key", scoped.key) == {"host": "a key without permission"}


def test_page_that_may_not_call_is_named(host: HostProcess, key: IssuedKey) -> None:
    found = causes(f"{host.base_url}/time/{key.session_key}", "--origin", "https://app.example.com", "--silence", "0")
    assert found == {"browser's preflight": "a refused preflight"}


@contextmanager
def tls_server(folder: Path) -> Iterator[str]:
    """The address of a server with a certificate that is signed by itself. It answers every request 501."""
    write_certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refused the certificate
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(WAIT_SECONDS)


def test_certificate_that_clients_refuse_is_named_and_a_good_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path) as address:
        assert causes(address) == {"certificate": "the certificate"}
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert causes(address) == {"host": "a wrong public URL"}  # an HTML page is not the host's


def test_server_that_cannot_be_started_is_named(host: HostProcess, key: IssuedKey) -> None:
    found = causes(f"{host.base_url}/broken/{key.session_key}")
    assert set(found.values()) == {"a server that is not available"}


def test_host_that_is_not_there_is_named() -> None:
    assert causes(f"http://127.0.0.1:{free_port()}") == {"host": "an unreachable host"}


@pytest.mark.parametrize(
    "url", ["mcp.example.com", "ftp://mcp.example.com", "http://", "http://[::1", "http://a:99999"]
)
def test_what_is_not_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(CommandError, match="URL is an address"):
        doctor(url)
