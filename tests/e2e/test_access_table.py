"""Every MCP route, every method, every kind of credential in every place it may stand: the status of each.

The rows are requests, the columns are credentials. What a right key gets is the row's own; all others are told apart by
nothing but 401 and 403.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from gateway.access.keys import SECRET_LENGTH, make_key, with_checksum
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, change_row, expire, issue, revoke
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, Request
from tests.support.wire import JSON, SseStream, request

INITIALIZE: Final = json.dumps(
    request(
        "initialize",
        {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "table", "version": "1"}},
        1,
    )
).encode()
LIST: Final = json.dumps(
    request(
        "tools/list",
        {"_meta": {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}},
        1,
    )
).encode()
STREAM: Final = {"Accept": "text/event-stream"}
IN_SESSION: Final = {"Mcp-Session-Id": "0" * 32}


@dataclass(frozen=True)
class Row:
    """One request, and its status with a right key."""

    name: str
    method: str
    right: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


ROWS: Final = [
    Row("sse stream", "GET", 200, headers=STREAM),
    Row("get that accepts no stream", "GET", 406, headers={"Accept": "text/html"}),
    Row("sse message", "POST", 404, b"{}", JSON, "/messages/?session_id=0123"),
    Row("sse message without slash", "POST", 404, b"{}", JSON, "/messages?session_id=0123"),
    Row("get of messages", "GET", 405, suffix="/messages/?session_id=0123"),
    Row("delete of messages", "DELETE", 405, suffix="/messages/"),
    Row("initialize", "POST", 200, INITIALIZE, ACCEPT_BOTH),
    Row("post without session", "POST", 400, LIST, ACCEPT_BOTH),
    Row("post in a session", "POST", 404, LIST, {**ACCEPT_BOTH, **IN_SESSION}),
    Row("post of nonsense", "POST", 400, b"{", ACCEPT_BOTH),
    Row("post of another type", "POST", 415, b"x", {"Content-Type": "text/plain"}),
    Row("standalone stream", "GET", 404, headers={**STREAM, **IN_SESSION}),
    Row("resumed stream", "GET", 404, headers={**STREAM, **IN_SESSION, "Last-Event-ID": "1-1"}),
    Row("delete of a session", "DELETE", 404, headers=IN_SESSION),
    Row("delete", "DELETE", 400),
    Row("stateless", "POST", 200, LIST, {**ACCEPT_BOTH, "MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/list"}),
    Row("stateless get", "GET", 200, headers={"MCP-Protocol-Version": STATELESS, "Accept": "text/event-stream"}),
    Row("put", "PUT", 405),
    Row("options", "OPTIONS", 405),
    Row("patch", "PATCH", 405),
    Row("head", "HEAD", 405),
]


@dataclass(frozen=True)
class Keys:
    """One of each kind; all but `other` are ada's."""

    right: IssuedKey
    second: IssuedKey
    expired: IssuedKey
    revoked: IssuedKey
    disabled: IssuedKey
    other: IssuedKey
    elsewhere: IssuedKey


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> tuple[Path, Keys]:
    data_dir = tmp_path_factory.mktemp("access")
    shutil.copy(migrated_database, data_dir / "gumcp.sqlite3")
    keys = Keys(
        right=issue(data_dir, "ada"),
        second=issue(data_dir, "ada", {"workshop": None, "nowhere": None}),
        expired=issue(data_dir, "ada"),
        revoked=issue(data_dir, "ada"),
        disabled=issue(data_dir, "gone"),
        other=issue(data_dir, "bob"),
        elsewhere=issue(data_dir, "ada", {"bystander": None}),
    )
    expire(data_dir, keys.expired)
    revoke(data_dir, keys.revoked)
    change_row(data_dir, "UPDATE auth_user SET is_active = 0 WHERE username = 'gone'")
    return data_dir, keys


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, prepared: tuple[Path, Keys], request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    options = {"GUMCP_AUTH": "keys", "GUMCP_LIMIT_FAILED_KEYS": "", "GUMCP_MAX_SESSIONS_PER_KEY": "0"}
    with start_host(data_dir=prepared[0], asgi_server=request.param, **options) as host:
        yield host


@pytest.fixture(scope="module")
def keys(prepared: tuple[Path, Keys]) -> Keys:
    return prepared[1]


def status(host: HostProcess, row: Row, path: str, headers: Mapping[str, str]) -> int:
    with Request(host.port, row.method, f"{path}{row.suffix}", row.body, {**row.headers, **headers}) as answer:
        return answer.status


def mistyped(key: str) -> str:
    return key[:-1] + ("a" if key[-1] != "a" else "b")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def bad_credentials(keys: Keys) -> dict[str, tuple[str, dict[str, str]]]:
    """Column -> the URL's path, the headers. None of them may call."""
    right, never_issued = keys.right, make_key().text
    columns: dict[str, tuple[str, dict[str, str]]] = {
        "no key": ("/workshop/ada", {}),
        "no key, bare url": ("/workshop", {}),
        "empty key in url": ("/workshop/ada:", {}),
        "empty bearer": ("/workshop/ada", {"Authorization": "Bearer "}),
        "another scheme": ("/workshop/ada", {"Authorization": f"Basic {right.key}"}),
        "bearer without scheme": ("/workshop/ada", {"Authorization": right.key}),
        "key in place of the user": (f"/workshop/{right.key}", {}),
        "unusable user": (f"/workshop/..:{right.key}", {}),
        "undecodable url": (f"/workshop/%ff:{right.key}", {}),
        "two keys in url": (f"/workshop/ada:{right.key}:{right.key}", {}),
        "right in url, other's in header": (f"/workshop/{right.session_key}", keys.other.bearer),
        "right in header, other's in url": (f"/workshop/{keys.other.session_key}", right.bearer),
        "right in url, ada's second in header": (f"/workshop/{right.session_key}", keys.second.bearer),
        "right in url, malformed header": (f"/workshop/{right.session_key}", {"Authorization": "Bearer"}),
        "other's in header": ("/workshop/ada", keys.other.bearer),
        "other's in url": (f"/workshop/ada:{keys.other.key}", {}),
        "other's in both": (f"/workshop/ada:{keys.other.key}", keys.other.bearer),
        "another spelling of the user": (f"/workshop/Ada:{right.key}", {}),
    }
    wrong = {
        "malformed": "secret",
        "mistyped": mistyped(right.key),
        "never issued": never_issued,
        "right public part, wrong secret": _with_public_part(right),
        "expired": keys.expired.key,
        "revoked": keys.revoked.key,
    }
    for name, text in wrong.items():
        columns[f"{name}, in url"] = (f"/workshop/ada:{text}", {})
        columns[f"{name}, in header"] = ("/workshop/ada", bearer(text))
        columns[f"{name}, in both"] = (f"/workshop/ada:{text}", bearer(text))
        columns[f"{name}, bare url"] = ("/workshop", bearer(text))
        columns[f"{name}, unknown server"] = (f"/no-such-server/ada:{text}", {})
    columns["disabled user"] = (f"/workshop/{keys.disabled.session_key}", {})
    return columns


def _with_public_part(key: IssuedKey) -> str:
    """A well-formed key that was never issued, with the public part of one that was."""
    return with_checksum(f"{key.public}_{'x' * SECRET_LENGTH}")


def good_credentials(keys: Keys) -> dict[str, tuple[str, dict[str, str]]]:
    right = keys.right
    return {
        "header": ("/workshop/ada", right.bearer),
        "header, lower case scheme": ("/workshop/ada", {"Authorization": f"bearer {right.key}"}),
        "url": (f"/workshop/{right.session_key}", {}),
        "url, encoded colon": (f"/workshop/ada%3A{right.key}", {}),
        "both": (f"/workshop/{right.session_key}", right.bearer),
        "bare url": ("/workshop", right.bearer),
        "second key, in scope": (f"/workshop/{keys.second.session_key}", {}),
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_right_key_gets_what_the_route_answers(host: HostProcess, keys: Keys, row: Row) -> None:
    found = {name: status(host, row, *where) for name, where in good_credentials(keys).items()}
    assert found == dict.fromkeys(found, row.right)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_whoever_may_not_call_is_answered_401(host: HostProcess, keys: Keys, row: Row) -> None:
    found = {name: status(host, row, *where) for name, where in bad_credentials(keys).items()}
    assert found == dict.fromkeys(found, 401)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_server_outside_a_keys_scope_is_403_known_or_not(host: HostProcess, keys: Keys, row: Row) -> None:
    key = keys.elsewhere
    found = {
        f"{name}, {server}": status(host, row, path, headers)
        for server in ("workshop", "no-such-server")
        for name, (path, headers) in {
            "header": (f"/{server}/ada", key.bearer),
            "url": (f"/{server}/{key.session_key}", {}),
            "both": (f"/{server}/{key.session_key}", key.bearer),
            "bare url": (f"/{server}", key.bearer),
        }.items()
    }
    assert found == dict.fromkeys(found, 403)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_right_key_for_an_unknown_server_is_404(host: HostProcess, keys: Keys, row: Row) -> None:
    assert status(host, row, "/no-such-server/ada", keys.right.bearer) == 404
    assert status(host, row, f"/nowhere/{keys.second.session_key}", {}) == 404


def test_all_401_answers_to_one_request_are_the_same_bytes(host: HostProcess, keys: Keys) -> None:
    for row in ROWS:
        answers = set()
        for path, headers in bad_credentials(keys).values():
            answer = host.request(row.method, f"{path}{row.suffix}", row.body, {**row.headers, **headers})
            assert answer.headers["www-authenticate"] == "Bearer"
            fields = sorted((name.lower(), value) for name, value in answer.headers.items() if name.lower() != "date")
            answers.add((str(fields), answer.body))
        assert len(answers) == 1, row.name


def test_two_authorization_headers_are_401_though_both_are_right(host: HostProcess, keys: Keys) -> None:
    line = f"Authorization: Bearer {keys.right.key}\r\n"
    raw = f"GET /workshop/ada HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}{line}\r\n".encode()
    with Request(host.port, "GET", "", raw=raw) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("path", ["/workshop", "/workshop/ada"])
def test_endpoint_event_repeats_the_path_as_the_client_wrote_it(host: HostProcess, keys: Keys, path: str) -> None:
    with SseStream(host.port, path, keys.right.bearer) as stream:
        assert stream.endpoint.startswith(f"{path}/messages/?session_id=")
        assert host.request("POST", stream.endpoint, b"{}", JSON).status == 401
        message = json.dumps(request("ping", None, "p")).encode()
        assert host.request("POST", stream.endpoint, message, {**JSON, **keys.right.bearer}).status == 202
        assert stream.answer("p")["result"] == {}
