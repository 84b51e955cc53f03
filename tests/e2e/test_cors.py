"""Web pages of another origin, in bytes: what their browser sends, and what it needs to let them call and read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import pytest

from tests.support.deadlines import WAIT_SECONDS
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, issue
from tests.support.streamable import (
    ACCEPT_BOTH,
    HandshakeSession,
    Request,
    StatelessClient,
    bare,
    initialize_message,
    post,
)
from tests.support.wire import JSON, Answer, SseStream, request, tool_call

PAGE: Final = "https://app.example.com"
ORIGIN: Final = {"Origin": PAGE}
STREAM: Final = {"Accept": "text/event-stream"}
OWN: Final = {"Origin": "http://127.0.0.1"}
REQUESTS_PER_KEY: Final = 30
REQUESTS_PER_ADDRESS: Final = 100
STRANGE_ORIGINS: Final = ("https://evil.example", "null", "*", f"{PAGE}/", "http://app.example.com", f"{PAGE}, {PAGE}")


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def asgi_server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(start_host: StartHost, asgi_server: str) -> Iterator[HostProcess]:
    with start_host(asgi_server=asgi_server, GUMCP_ALLOWED_ORIGINS=PAGE) as host:
        yield host


@pytest.fixture(scope="module")
def keyed_data_dir(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    data_dir = tmp_path_factory.mktemp("keys")
    shutil.copy(migrated_database, data_dir / "gumcp.sqlite3")
    return data_dir


@pytest.fixture(scope="module")
def key(keyed_data_dir: Path) -> IssuedKey:
    return issue(keyed_data_dir, "ada")


@pytest.fixture(scope="module")
def elsewhere(keyed_data_dir: Path) -> IssuedKey:
    """A key that is not for the workshop."""
    return issue(keyed_data_dir, "bob", {"bystander": None})


@pytest.fixture(scope="module")
def keyed_host(
    start_host: StartHost, asgi_server: str, keyed_data_dir: Path, key: IssuedKey, elsewhere: IssuedKey
) -> Iterator[HostProcess]:
    options = {
        "GUMCP_AUTH": "keys",
        "GUMCP_ALLOWED_ORIGINS": PAGE,
        "GUMCP_LIMIT_FAILED_KEYS": "",
        "GUMCP_LIMIT_REQUESTS_PER_KEY": f"{REQUESTS_PER_KEY}/minute",
        "GUMCP_LIMIT_REQUESTS_PER_ADDRESS": f"{REQUESTS_PER_ADDRESS}/minute",
    }
    with start_host(data_dir=keyed_data_dir, asgi_server=asgi_server, **options) as host:
        yield host


def preflight(
    host: HostProcess, target: str, method: str = "POST", asked: str = "content-type", origin: str = PAGE
) -> Answer:
    """Ask as a browser does before it makes a page's request."""
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked}
    return host.request("OPTIONS", target, headers=headers)


def is_allowed(answer: Answer, method: str, headers: Mapping[str, str], origin: str = PAGE) -> bool:
    """Whether a browser makes the request after this answer to its preflight."""
    allowed = {name.strip() for name in answer.headers.get("access-control-allow-headers", "").lower().split(",")}
    return (
        200 <= answer.status < 300
        and answer.headers.get_all("access-control-allow-origin") == [origin]
        and method in answer.headers["access-control-allow-methods"].split(", ")
        and all(name.lower() in allowed for name in headers)
    )


def ask(host: HostProcess, target: str, method: str, headers: Mapping[str, str]) -> None:
    """Make a preflight that the page's request has to pass."""
    answer = preflight(host, target, method, ",".join(sorted(name.lower() for name in headers)))
    assert is_allowed(answer, method, headers), bare(answer)


def is_readable(answer: Answer | Request | SseStream, origin: str = PAGE) -> bool:
    """Whether a browser shows the answer to the page, and no shared cache to another."""
    exposed = answer.headers.get("access-control-expose-headers", "").lower().split(", ")
    return (
        answer.headers.get_all("access-control-allow-origin") == [origin]
        and answer.headers.get_all("vary") == ["Origin"]
        and {"mcp-session-id", "www-authenticate", "retry-after"} == set(exposed)
        and "access-control-allow-credentials" not in answer.headers
    )


def has_no_trace(answer: Answer | Request | SseStream) -> bool:
    """Whether nothing in the answer is for browsers."""
    return not [name for name in answer.headers if name.lower().startswith("access-control-") or name.lower() == "vary"]


# -- What a page does ------------------------------------------------------------------------------------------------


def test_page_calls_over_http_and_sse(host: HostProcess) -> None:
    # EventSource asks nothing beforehand.
    with host.stream("workshop", "ada:key", ORIGIN) as stream:
        assert is_readable(stream)
        ask(host, stream.endpoint, "POST", JSON)
        accepted = stream.post(initialize_message(), ORIGIN)
        assert (accepted.status, is_readable(accepted)) == (202, True)
        assert stream.answer("init")["result"]["serverInfo"]["name"] == "workshop"
        stream.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, ORIGIN)
        stream.post(tool_call(1, "echo", text="from a page"), ORIGIN)
        assert stream.answer(1)["result"]["content"][0]["text"] == "from a page"


def test_page_calls_over_streamable_http_with_a_session(host: HostProcess) -> None:
    target = "/workshop/ada:key"
    ask(host, target, "POST", ACCEPT_BOTH)
    with HandshakeSession(host, "workshop", "ada:key") as session:
        headers = {**ACCEPT_BOTH, **session.headers}
        ask(host, target, "POST", headers)
        with session.post(tool_call(1, "echo", text="from a page"), ORIGIN) as call:
            assert is_readable(call)
            assert call.text() == "from a page"
        ask(host, target, "GET", {**STREAM, **session.headers, "Last-Event-ID": "1-1"})
        with session.get(headers=ORIGIN) as stream:
            assert stream.is_stream
            assert is_readable(stream)
        ask(host, target, "DELETE", session.headers)
        ended = host.request("DELETE", target, headers={**session.headers, **ORIGIN})
        assert (ended.status, is_readable(ended)) == (200, True)


def test_page_reads_the_session_id_that_it_has_to_repeat(host: HostProcess) -> None:
    opened = post(host, "/workshop/ada:key", initialize_message(), ORIGIN).answer()
    assert opened.headers["mcp-session-id"]
    assert is_readable(opened)
    host.request("DELETE", "/workshop/ada:key", headers={"Mcp-Session-Id": opened.headers["mcp-session-id"]})


def test_page_calls_over_the_stateless_protocol(host: HostProcess) -> None:
    client = StatelessClient(host, "workshop", "ada:key")
    envelope = {"MCP-Protocol-Version": "", "Mcp-Method": "", "Mcp-Name": "", "Mcp-Param-Region": ""}
    ask(host, client.target, "POST", {**ACCEPT_BOTH, **envelope})
    with client.request("tools/call", {"name": "echo", "arguments": {"text": "from a page"}}, headers=ORIGIN) as call:
        assert is_readable(call)
        assert call.text() == "from a page"
    in_steps = {"name": "progress", "arguments": {"steps": 2}}
    with client.request("tools/call", in_steps, meta={"progressToken": "p"}, headers=ORIGIN) as stream:
        assert stream.is_stream
        assert is_readable(stream)
        assert len(stream.messages()) == 3


def test_page_calls_with_a_key(keyed_host: HostProcess, key: IssuedKey) -> None:
    for target, headers in (
        ("/workshop", key.bearer),
        ("/workshop/ada", key.bearer),
        (f"/workshop/{key.session_key}", {}),
    ):
        ask(keyed_host, target, "POST", {**ACCEPT_BOTH, **headers})
        opened = post(keyed_host, target, initialize_message(), {**headers, **ORIGIN}).answer()
        assert opened.status == 200
        assert is_readable(opened)
        session = {**headers, "Mcp-Session-Id": opened.headers["mcp-session-id"]}
        ask(keyed_host, target, "DELETE", session)
        assert is_readable(keyed_host.request("DELETE", target, headers={**session, **ORIGIN}))
        ask(keyed_host, f"{target}/messages/?session_id=0123", "POST", {**JSON, **headers})


# -- Refusals --------------------------------------------------------------------------------------------------------


def test_page_reads_why_it_was_refused(host: HostProcess) -> None:
    target, unknown = "/workshop/ada:key", {"Mcp-Session-Id": "0" * 32}
    refused = {
        404: host.request("GET", "/no-such-server/ada", headers={**STREAM, **ORIGIN}),
        405: host.request("PUT", target, headers=ORIGIN),
        406: host.request("GET", target, headers={"Accept": "text/html", **ORIGIN}),
        415: host.request("POST", target, b"x", {"Content-Type": "text/plain", **ORIGIN}),
        400: post(host, target, b"{", ORIGIN).answer(),
    }
    assert {status: answer.status for status, answer in refused.items()} == {status: status for status in refused}
    gone = post(host, target, tool_call(1, "echo", text="x"), {**unknown, **ORIGIN}).answer()
    unposted = host.request("POST", f"{target}/messages/?session_id=0123", b"{}", {**JSON, **ORIGIN})
    keyless = post(host, "/workshop", initialize_message(), ORIGIN).answer()
    assert [gone.status, unposted.status, keyless.status] == [404, 404, 404]
    assert all(is_readable(answer) for answer in (*refused.values(), gone, unposted, keyless))


def test_page_without_a_key_passes_the_preflight_and_reads_the_401(keyed_host: HostProcess) -> None:
    for target in ("/workshop", "/workshop/ada", "/workshop/ada:wrong", "/no-such-server", "/workshop/messages/"):
        ask(keyed_host, target, "POST", ACCEPT_BOTH)
        refused = post(keyed_host, target, initialize_message(), ORIGIN).answer()
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert is_readable(refused)


def test_page_with_a_key_for_another_server_reads_the_403(keyed_host: HostProcess, elsewhere: IssuedKey) -> None:
    refused = post(keyed_host, "/workshop", initialize_message(), {**elsewhere.bearer, **ORIGIN}).answer()
    assert refused.status == 403
    assert is_readable(refused)


def test_page_that_calls_too_often_reads_when_to_come_back(keyed_host: HostProcess, keyed_data_dir: Path) -> None:
    busy = {**issue(keyed_data_dir, "eve").bearer, **ORIGIN}
    refused = [post(keyed_host, "/workshop", b"{", busy).answer() for _ in range(REQUESTS_PER_KEY + 1)][-1]
    assert refused.status == 429
    assert refused.headers["retry-after"]
    assert is_readable(refused)


# -- What a preflight says -------------------------------------------------------------------------------------------


def test_preflight_is_the_same_whoever_and_whatever_it_is_about(keyed_host: HostProcess, key: IssuedKey) -> None:
    users = ("", "/", "/ada", "/bob:wrong", f"/{key.session_key}", "/%ff", "/..:x")
    for suffix, methods in (("", "GET, POST, DELETE"), ("/messages/?session_id=0123", "POST")):
        answers = {
            str(bare(preflight(keyed_host, f"/{server}{user.rstrip('/') if suffix else user}{suffix}")))
            for server in ("workshop", "bystander", "no-such-server")
            for user in users
        }
        assert len(answers) == 1
        answer = preflight(keyed_host, f"/workshop/ada{suffix}")
        assert (answer.status, answer.body, answer.headers["access-control-allow-methods"]) == (204, b"", methods)


def test_preflights_use_up_no_limit_and_keep_their_connection(keyed_host: HostProcess, key: IssuedKey) -> None:
    with closing(HTTPConnection("127.0.0.1", keyed_host.port, timeout=WAIT_SECONDS)) as connection:
        connection.connect()
        opened = connection.sock
        for _ in range(3 * REQUESTS_PER_ADDRESS):
            connection.request("OPTIONS", "/workshop", headers={**ORIGIN, "Access-Control-Request-Method": "POST"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (204, b"")
        assert connection.sock is opened
    assert post(keyed_host, "/workshop", b"{", key.bearer).answer().status == 400


@pytest.mark.parametrize(
    "asked",
    [
        "x-evil",
        "*",
        "authorization,cookie",
        "mcp-param-evil header",
        'mcp-param-"evil"',
        "mcp-param-evil;q=1",
        "mcp-param-evilé",
        "mcp-param-" + "evil" * 1500,
        ",".join(f"mcp-param-evil{number}" for number in range(300)),
    ],
    ids=lambda asked: asked[:30],
)
def test_requested_header_that_no_mcp_client_sends_does_not_come_back(host: HostProcess, asked: str) -> None:
    answer = preflight(host, "/workshop/ada:key", asked=asked)
    assert not is_allowed(answer, "POST", dict.fromkeys(asked.split(","), ""))
    assert not [value for value in answer.headers.values() if "evil" in value or "cookie" in value or "*" in value]
    assert len(str(answer.headers)) < 1000


@pytest.mark.parametrize("split", ["\r\n", "\n", "\r", "%0d%0a", "\x0b", "\x00"], ids=repr)
def test_requested_headers_cannot_add_a_header_to_the_answer(host: HostProcess, split: str) -> None:
    lines = [
        "OPTIONS /workshop/ada:key HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"Origin: {PAGE}",
        "Access-Control-Request-Method: POST",
        f"Access-Control-Request-Headers: authorization,mcp-param-a{split}X-Evil: evil",
    ]
    raw = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    with Request(host.port, "OPTIONS", "", raw=raw) as asked:
        answer = asked.answer()
    assert answer.status in (204, 400)
    assert "x-evil" not in answer.headers
    assert not [value for value in answer.headers.values() if "evil" in value.lower()]


# -- Everybody else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", STRANGE_ORIGINS)
def test_page_of_another_origin_is_refused_as_without_preflights(
    host: HostProcess, keyed_host: HostProcess, origin: str
) -> None:
    for target in ("/workshop/ada:key", "/no-such-server/ada", "/workshop/ada:key/messages/"):
        for answered_by in (host, keyed_host):
            answer = preflight(answered_by, target, origin=origin)
            assert (answer.status, has_no_trace(answer)) == (403, True)
            answer = post(answered_by, target, initialize_message(), {"Origin": origin}).answer()
            assert (answer.status, has_no_trace(answer)) == (403, True)


def test_page_under_a_foreign_name_is_refused_as_without_preflights(host: HostProcess) -> None:
    headers = {"Host": "evil.example", "Access-Control-Request-Method": "POST"}
    for origin in (PAGE, "http://evil.example"):
        answer = host.request("OPTIONS", "/workshop/ada", headers={**headers, "Origin": origin})
        assert (answer.status, has_no_trace(answer)) == (421, True)


def test_own_pages_are_served(host: HostProcess) -> None:
    assert is_allowed(preflight(host, "/workshop/ada:key", origin=OWN["Origin"]), "POST", JSON, OWN["Origin"])
    with StatelessClient(host, "workshop", "ada:key").request("tools/list", headers=OWN) as listing:
        assert is_readable(listing, OWN["Origin"])
        assert listing.reply()["result"]["tools"]


def test_clients_that_are_no_page_see_none_of_it(host: HostProcess, keyed_host: HostProcess) -> None:
    target = "/workshop/ada:key"
    no_page = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with host.stream("workshop", "ada:key") as stream, HandshakeSession(host, "workshop", "ada:key") as session:
        answers = [
            (stream, 200),
            (stream.post(request("ping", None, 1)), 202),
            (session.post(tool_call(1, "echo", text="x")).answer(), 200),
            (StatelessClient(host, "workshop", "ada:key").start("echo", text="x").answer(), 200),
            (host.request("OPTIONS", target, headers=no_page), 405),
            (keyed_host.request("OPTIONS", target, headers=no_page), 401),
            (host.request("GET", "/no-such-server/ada", headers=STREAM), 404),
        ]
        assert [(answer.status, has_no_trace(answer)) for answer, _ in answers] == [(due, True) for _, due in answers]


def test_pages_of_django_are_nobody_elses_to_read(host: HostProcess) -> None:
    for target in ("/", "/health_check", "/admin/login/"):
        answer = host.request("GET", target, headers=ORIGIN)
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers
