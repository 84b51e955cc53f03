"""Canary keys, issued ones among them, through all that can happen on a host that debugs: none is written down."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, issue, revoke
from tests.support.processes import until
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, HandshakeSession, post
from tests.support.wire import JSON, SseStream, request, tool_call

CANARY = "canary-1f8c"
DEBUGGING = {
    "GUMCP_DEBUG": "true",
    "GUMCP_LOG_LEVEL": "DEBUG",
    "GUMCP_FACTORY_TIMEOUT_SECONDS": "1",
    "GUMCP_CALL_TIMEOUT_SECONDS": "1",
    "GUMCP_LIMIT_FAILED_KEYS": "1000/minute",
    "GUMCP_LIMIT_FAILED_LOGINS": "2 per hour",
}


@pytest.fixture(scope="module", params=["daphne", "uvicorn", "serve"])
def host(
    start_host: StartHost,
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    request: pytest.FixtureRequest,
) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("secrets")
    shutil.copy(migrated_database, folder / "gumcp.sqlite3")
    with start_host(data_dir=folder, asgi_server=request.param, GUMCP_AUTH="keys", **DEBUGGING) as host:
        yield host


def provoke(host: HostProcess, key: IssuedKey) -> list[bytes]:
    """Good and bad requests of all kinds with secrets in them; returns what the bad ones were answered."""
    answered: list[bytes] = []
    for path, headers in ((f"/workshop/{key.session_key}", {}), ("/workshop", key.bearer)):
        with SseStream(host.port, path, headers) as stream:
            for message in (
                request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}, 0),
                {"jsonrpc": "2.0", "method": "notifications/initialized"},
                *(tool_call(number, tool) for number, tool in enumerate(("fail", "leave", "leak_key"), 1)),
                tool_call(4, "wait", seconds=30),
            ):
                stream_answer = host.request("POST", stream.endpoint, _dump(message), {**JSON, **headers})
                assert stream_answer.status == 202
            answered += [str(stream.answer(number)).encode() for number in (1, 2, 3, 4)]
    session = HandshakeSession(host, "workshop", key.session_key)
    for tool in ("fail", "leave", "leak_key"):
        answered.append(session.start(tool).answer().body)
    for tool in ("fail", "leak_key"):
        envelope = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
        message = request("tools/call", {"name": tool, "arguments": {}, "_meta": envelope}, 1)
        headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": tool, **key.bearer}
        answered.append(post(host, "/workshop", message, headers).answer().body)
    for mood in ("raises", "exits", "lifeless", "endless"):
        moody = issue(host.data_dir, f"{mood}-user")
        answered.append(host.request("GET", f"/moody/{moody.session_key}").body)
        answered.append(host.request("GET", "/moody", headers={**moody.bearer, "Accept": "text/event-stream"}).body)
        revoke(host.data_dir, moody)
    for secret in (key.key, key.key[:-1], CANARY, f"{CANARY}%2F{CANARY}"):
        paths = [
            *(f"/workshop/bob:{secret}", f"/workshop/{secret}", f"/nowhere/ada:{secret}", f"/nowhere/{secret}"),
            *(f"/workshop/bob:{secret}/messages/?session_id={secret}", f"//workshop/ada:{secret}"),
            *(f"/metrics/ada:{secret}", f"/admin/ada:{secret}", f"/static/ada:{secret}", f"/health_check/ada:{secret}"),
            *(f"/workshop/ada/{secret}?key={secret}&token={secret}", f"/?api_key={secret}", f"/workshop?key={secret}"),
        ]
        headers = {
            **ACCEPT_BOTH,
            "Authorization": f"Bearer {secret}",
            "Referer": f"http://127.0.0.1/workshop/ada:{secret}",
            "Sec-Fetch-Site": "same-origin",  # or the host would stop at the foreign Referer
            "Mcp-Session-Id": secret,
            "Last-Event-ID": secret,
            "Cookie": f"sessionid={secret}; csrftoken={secret}",
        }
        for path in paths:
            for method in ("GET", "POST", "DELETE", "PUT"):
                answered.append(host.request(method, path, b"{" if method == "POST" else b"", headers).body)
        for head in (
            {"Host": "evil.example"},
            {"Origin": "https://evil.example"},
            {"Authorization": f"Basic {secret}"},
        ):
            answered.append(host.request("GET", f"/workshop/ada:{secret}", headers={**headers, **head}).body)
        for _ in range(4):  # without a CSRF token, and then too often
            login = f"username={secret}&password={secret}".encode()
            form = {"Content-Type": "application/x-www-form-urlencoded", "Referer": headers["Referer"]}
            answered.append(host.request("POST", "/admin/login/", login, form).body)
    return answered


def _dump(message: object) -> bytes:
    return json.dumps(message).encode()


def command_lines() -> str:
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return "\n".join(lines)


def test_keys_are_in_no_log_metric_row_error_or_command_line(host: HostProcess) -> None:
    key = issue(host.data_dir, "ada")
    answered = provoke(host, key)
    secrets = (key.key, key.key[:-1], key.key[len(key.public) :], CANARY)
    metrics = host.metrics_text()
    processes = command_lines()
    until(lambda: len(re.findall("Closed SSE connection for workshop session: ada", host.log())) >= 2)
    rows = b"".join(path.read_bytes() for path in host.data_dir.glob("gumcp.sqlite3*"))
    log = host.log()
    for secret in secrets:
        assert [body for body in answered if secret.encode() in body] == []
        assert [line for line in log.splitlines() if secret in line] == []
        assert secret not in metrics
        assert secret.encode() not in rows
        assert secret not in processes
    # The log keeps what an operator needs: whose key it was, and where handlers failed.
    assert f"/workshop/[{key.public}]" in log
    assert "in fail" in log
    assert "RuntimeError: [its text is left out]" in log
    assert "RuntimeError: the tool failed" not in log


def test_admin_shows_the_public_part_and_throttles_logins(host: HostProcess) -> None:
    page = host.request("GET", "/admin/login/")
    token = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page.body)
    assert token is not None
    cookie = page.headers["set-cookie"].partition(";")[0]
    form = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie}
    body = b"username=operator&password=wrong&csrfmiddlewaretoken=" + token.group(1)
    statuses = [host.request("POST", "/admin/login/", body, form).status for _ in range(4)]
    assert statuses[-1] == 429
    assert set(statuses) <= {200, 429}
