"""A canary key in every kind of request, good and bad: it must turn up in nothing that is written down or answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.canary import BODY_LIMIT, CANARY, provoke
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import JSON


@pytest.fixture(scope="module", params=["daphne", "uvicorn", "serve"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(
        asgi_server=request.param,
        GUMCP_FACTORY_TIMEOUT_SECONDS="1",
        GUMCP_MAX_BODY_BYTES=str(BODY_LIMIT),
        GUMCP_LOG_FORMAT="json" if request.param == "serve" else "text",
    ) as host:
        yield host


def test_key_is_in_no_log_metric_row_or_error(host: HostProcess) -> None:
    answered = provoke(host)
    assert not [body for body in answered if CANARY.encode() in body]
    until(lambda: not host.rows("SELECT * FROM records_sessionrecord WHERE state = 'open'"))
    assert host.rows("SELECT * FROM records_sessionrecord")
    rows = b"".join(path.read_bytes() for path in host.data_dir.glob("gumcp.sqlite3*"))
    assert CANARY.encode() not in rows
    assert CANARY not in host.metrics_text()
    log = host.log()
    assert [line for line in log.splitlines() if CANARY in line] == []
    # The log is not empty, and keeps what an operator needs.
    assert "/workshop/[redacted]" in log
    assert "moody" in log
    assert "RuntimeError" in log


def test_key_with_slashes_is_in_no_log_line(host: HostProcess) -> None:
    with host.session("workshop", "ada:x%2Fcanary-3d2e%2Fy") as stream:
        stream.call("echo", text="x")
    for path in ("/workshop/ada:x%2Fcanary-3d2e", "/workshop/..%2F:canary-3d2e", "/workshop/%2F%2F:canary-3d2e"):
        host.request("PUT", path)
    until(lambda: "Closed SSE connection for workshop session: ada" in host.log())
    assert "canary-3d2e" not in host.log()


def test_key_that_a_handler_logs_or_raises_is_taken_out_of_what_the_host_writes(host: HostProcess) -> None:
    with host.session("workshop", "leaking:canary-9c1b") as stream:
        answer = stream.request("tools/call", {"name": "leak_key", "arguments": {}})
        assert "error" in answer or answer["result"]["isError"]
    until(lambda: "Closed SSE connection for workshop session: leaking" in host.log())
    assert "canary-9c1b" not in host.log()


def test_session_id_is_in_no_log_line_or_row(host: HostProcess) -> None:
    with host.session("workshop", "quiet:key") as stream:
        session_id = stream.endpoint.partition("session_id=")[2]
        stream.call("echo", text="x")
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'quiet' AND calls = 1"))
        rows = b"".join(path.read_bytes() for path in host.data_dir.glob("gumcp.sqlite3*"))
        assert session_id.encode() not in rows
    until(lambda: host.request("POST", stream.endpoint, b"{}", JSON).status == 404, 1)
    assert session_id not in host.log()
