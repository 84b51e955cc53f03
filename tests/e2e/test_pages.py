"""What Django answers beside the MCP routes, and what a host says of itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.host_process import HostProcess, StartHost

NAMES = ["bystander", "moody", "workshop"]


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(asgi_server=request.param) as host:
        yield host


def test_index_names_the_servers_in_the_ancestors_words(host: HostProcess) -> None:
    answer = host.request("GET", "/")
    assert answer.status == 200
    assert answer.json == {"status": "ok", "message": "guMCP server running", "servers": NAMES}


@pytest.mark.parametrize("path", ["/health_check", "/health_check/"])
def test_health_check_names_the_servers(host: HostProcess, path: str) -> None:
    answer = host.request("GET", path)
    assert (answer.status, answer.json) == (200, {"status": "ok", "servers": NAMES})
    assert host.request("HEAD", path).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/health_check"])
def test_wrong_method_on_a_page_is_405_with_allow(host: HostProcess, method: str, path: str) -> None:
    answer = host.request(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json["error"]


def test_admin_asks_for_a_login_and_its_static_files_are_served_without_debug(host: HostProcess) -> None:
    login = host.request("GET", "/admin/login/")
    assert login.status == 200
    assert b"Log in" in login.body
    style = host.request("GET", "/static/admin/css/base.css")
    assert style.status == 200
    assert style.headers["content-type"].startswith("text/css")
    assert host.request("GET", "/admin/").headers["location"].startswith("/admin/login/")


def test_error_pages_hold_no_debugging_aid(host: HostProcess) -> None:
    answer = host.request("GET", "/admin/no/such/page")
    assert b"DEBUG = True" not in answer.body
    assert b"URLconf" not in answer.body


def test_websocket_is_not_spoken(host: HostProcess) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    # An ASGI server without WebSockets ignores the header, as HTTP allows, and serves the stream.
    with host.stream("workshop", "ada", upgrade) as stream:
        assert stream.status in (200, 400, 403)


def test_metrics_are_on_their_own_port_only(host: HostProcess) -> None:
    assert host.request("GET", "/metrics").status == 404
    text = host.metrics_text()
    for name in ("gumcp_active_connections", "gumcp_connection_total", "django_http_requests_total_by_method_total"):
        assert f"# TYPE {name}" in text or f"{name}{{" in text
