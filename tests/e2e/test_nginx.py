"""`docs/nginx.conf` as it is, with the addresses of this machine put in, in front of a real host."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import write_certificate
from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, issue
from tests.support.processes import ROOT, free_port, until
from tests.support.streamable import ACCEPT_BOTH, initialize_message
from tests.support.wire import JSON, request

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

NAME = "mcp.example.com"
CLIENT = "127.0.0.2"
"""Where clients come from: not the proxy's address."""

OTHER_CLIENT = "127.0.0.3"
"""Where a client comes from whose wrong keys do not count for the others."""


@dataclass
class Front:
    """nginx, and the host behind it."""

    host: HostProcess
    port: int
    plain_port: int
    folder: Path
    context: ssl.SSLContext
    key: IssuedKey

    def connection(self, source: str = CLIENT) -> HTTPSConnection:
        connection = HTTPSConnection(NAME, self.port, timeout=WAIT_SECONDS, context=self.context)
        raw = socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS, source_address=(source, 0))
        connection.sock = self.context.wrap_socket(raw, server_hostname=NAME)
        return connection

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, source: str = CLIENT
    ) -> Any:
        connection = self.connection(source)
        try:
            connection.request(method, path, body or None, {"Host": NAME, **(headers or {})})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def initialize(self, endpoint: bytes, headers: dict[str, str]) -> None:
        """Post the first message to the endpoint that a stream has named: only established sessions have rows."""
        path = endpoint.decode().removeprefix("data: ").strip()
        body = json.dumps(initialize_message()).encode()
        assert self.request("POST", path, body, {**JSON, **headers})[0] == 202

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        connection = self.connection()
        try:
            connection.request("GET", path, headers={"Host": NAME, "Accept": "text/event-stream", **headers})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def front(
    start_host: StartHost,
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    shutil.copy(migrated_database, folder / "gumcp.sqlite3")
    key = issue(folder, "ada")
    settings = {
        "GUMCP_PUBLIC_URL": f"https://{NAME}",
        "GUMCP_TRUSTED_PROXIES": "127.0.0.1",
        "GUMCP_LIMIT_FAILED_KEYS": "3/hour",
        "GUMCP_PING_SECONDS": "1",
    }
    with start_host(data_dir=folder, asgi_server=request.param, **settings) as host:
        context = _certificate(folder)
        port, plain_port = free_port(), free_port()
        with _nginx(folder, host.port, port, plain_port):
            yield Front(host, port, plain_port, folder, context, key)


def _certificate(folder: Path) -> ssl.SSLContext:
    write_certificate(folder, NAME)
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


@contextmanager
def _nginx(folder: Path, host_port: int, port: int, plain_port: int) -> Iterator[None]:
    site = (ROOT / "docs" / "nginx.conf").read_text()
    for written, here in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{host_port};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        (f"/etc/letsencrypt/live/{NAME}/fullchain.pem", str(folder / "cert.pem")),
        (f"/etc/letsencrypt/live/{NAME}/privkey.pem", str(folder / "key.pem")),
        ("/var/log/nginx/gumcp.log", str(folder / "nginx.log")),
        ("/var/log/nginx/gumcp-error.log", str(folder / "nginx-error.log")),
    ):
        assert written in site, written
        site = site.replace(written, here)
    (folder / "site.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"daemon off; pid {folder / 'nginx.pid'}; error_log {folder / 'nginx-error.log'} crit; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{ {temporary} include {folder / 'site.conf'}; }}\n")
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx-error.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:

        def is_listening() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(is_listening)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_SECONDS)


def test_http_2_is_offered(front: Front) -> None:
    front.context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection(("127.0.0.1", front.port), WAIT_SECONDS) as raw,
            front.context.wrap_socket(raw, server_hostname=NAME) as connection,
        ):
            assert connection.selected_alpn_protocol() == "h2"
    finally:
        front.context.set_alpn_protocols(["http/1.1"])


def test_events_and_comments_pass_as_they_come(front: Front) -> None:
    with front.stream("/workshop", front.key.bearer) as stream:
        assert stream.status == 200
        assert stream.readline() == b"event: endpoint\r\n"
        endpoint = stream.readline()
        assert stream.readline() == b"\r\n"
        started = time.monotonic()
        assert stream.readline().startswith(b":"), "a comment on a silent stream"
        assert time.monotonic() - started < within(3)
        front.initialize(endpoint, front.key.bearer)
        while b'"result"' not in (line := stream.readline()):
            assert line
    [row] = until(lambda: front.host.rows("SELECT address FROM records_sessionrecord ORDER BY opened_at DESC LIMIT 1"))
    assert row["address"] == CLIENT


def test_forwarded_headers_of_a_client_change_nothing(front: Front) -> None:
    lies = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    with front.stream("/workshop", {**front.key.bearer, **lies}) as stream:
        assert stream.status == 200
        assert stream.readline() == b"event: endpoint\r\n"
        front.initialize(stream.readline(), {**front.key.bearer, **lies})
        rows = "SELECT address FROM records_sessionrecord WHERE state = 'open' ORDER BY opened_at DESC LIMIT 1"
        assert until(lambda: front.host.rows(rows))[0]["address"] == CLIENT


def test_forwarded_headers_are_believed_from_the_proxy_only(front: Front) -> None:
    """Straight to the host, from an address that is no proxy's."""
    with socket.create_connection(("127.0.0.1", front.host.port), WAIT_SECONDS, source_address=(CLIENT, 0)) as raw:
        raw.sendall(
            b"GET /admin/login/ HTTP/1.1\r\nHost: mcp.example.com\r\nX-Forwarded-Proto: https\r\n"
            b"X-Forwarded-For: 198.51.100.7\r\nConnection: close\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 301")


def test_admin_is_served_over_https_with_cookies_for_it(front: Front) -> None:
    status, headers, _ = front.request("GET", "/admin/login/")
    assert status == 200
    cookie = next(value for name, value in headers.items() if name.lower() == "set-cookie")
    assert cookie.startswith("__Host-csrftoken=")
    assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert any(name.lower() == "strict-transport-security" for name in headers)


def test_calls_are_answered_and_refusals_count_for_the_client(front: Front) -> None:
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "n", "version": "1"}}
    body = json.dumps(request("initialize", client, 1)).encode()
    status, _, answer = front.request("POST", f"/workshop/{front.key.session_key}", body, ACCEPT_BOTH)
    assert (status, json.loads(answer)["result"]["serverInfo"]["name"]) == (200, "workshop")
    statuses = [front.request("GET", "/workshop/ada:canary-nginx")[0] for _ in range(5)]
    assert statuses == [401] * 3 + [429] * 2
    # The proxy itself has done nothing wrong.
    assert front.host.request("GET", "/workshop/ada:wrong", headers={"Host": NAME}).status == 401


def test_plain_http_gets_nowhere(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.plain_port), WAIT_SECONDS) as raw:
        raw.sendall(f"GET /workshop HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 403")


def test_nginx_writes_down_no_key(front: Front) -> None:
    front.request("GET", f"/workshop/{front.key.session_key}/nothing?key={front.key.key}")
    front.request("GET", f"/workshop/{front.key.session_key}", headers={"Accept": "text/html"})
    front.request("GET", "/admin/login/?next=/workshop/ada:canary-nginx")
    odd = ("/ada:canary-nginx", "//workshop/ada:canary-nginx", "/workshop%2Fada:canary-nginx", f"/{front.key.key}")
    beside = ("/admin/../workshop/ada:canary-nginx", "/static/ada:canary-nginx", f"/admin/{front.key.key}/")
    for path in (*odd, *beside, "/workshop;x/ada:canary-nginx"):
        front.request("GET", path, source=OTHER_CLIENT)
    front.request("GET", "/admin/login/")
    log = until(lambda: (front.folder / "nginx.log").read_text())
    for shown in ("/workshop/[redacted]", "/admin/login/", "/static/[redacted]", " /[redacted]"):
        assert f"GET {shown.strip()}" in log
    for path in front.folder.glob("*.log"):
        assert front.key.key not in path.read_text()
        assert "canary-nginx" not in path.read_text()
