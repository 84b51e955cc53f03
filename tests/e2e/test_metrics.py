"""What Prometheus reads, moved by real traffic."""

from __future__ import annotations

import re

import pytest

from tests.support.host_process import HostProcess
from tests.support.processes import until
from tests.support.wire import JSON, tool_call


def moved(host: HostProcess, before: float, name: str, **labels: str) -> float:
    return host.metric(name, **labels) - before


def test_gauge_equals_the_number_of_open_streams(host: HostProcess) -> None:
    def gauge() -> float:
        return host.metric("gumcp_active_connections", server="workshop")

    assert gauge() == 0
    streams = [host.stream("workshop", f"counted-{number}") for number in range(5)]
    assert gauge() == 5
    streams.pop().close()
    until(lambda: gauge() == 4, 1)
    for stream in streams:
        stream.close()
    until(lambda: gauge() == 0, 1)


def test_gauge_never_goes_below_zero_when_streams_are_refused(host: HostProcess) -> None:
    for path in ("/moody/raises-metric", "/workshop/%ff", "/nowhere/x", "/moody/nonsense-metric"):
        assert host.request("GET", path).status >= 400
    assert host.metric("gumcp_active_connections") == 0


def test_connections_and_sessions_are_counted_by_server(host: HostProcess) -> None:
    names = ("gumcp_connection_total", "gumcp_sessions_opened_total")
    before = {name: host.metric(name, server="bystander") for name in names}
    others = {name: host.metric(name, server="workshop") for name in names}
    host.session("bystander", "counting").close()
    assert {name: moved(host, before[name], name, server="bystander") for name in names} == dict.fromkeys(names, 1)
    assert {name: moved(host, others[name], name, server="workshop") for name in names} == dict.fromkeys(names, 0)
    until(lambda: host.metric("gumcp_sessions", server="bystander", transport="sse") == 0, 1)


def test_messages_are_counted_by_direction(host: HostProcess) -> None:
    incoming = host.metric("gumcp_messages_total", server="bystander", direction="in")
    outgoing = host.metric("gumcp_messages_total", server="bystander", direction="out")
    with host.session("bystander", "messages") as stream:
        stream.call("echo", text="x")
    assert moved(host, incoming, "gumcp_messages_total", server="bystander", direction="in") == 3
    assert moved(host, outgoing, "gumcp_messages_total", server="bystander", direction="out") == 2


@pytest.mark.parametrize(
    ("tool", "outcome", "arguments"),
    [("echo", "ok", {"text": "x"}), ("fail", "exception", {}), ("leave", "exception", {})],
)
def test_calls_are_counted_by_tool_and_outcome_with_a_latency(
    host: HostProcess, tool: str, outcome: str, arguments: dict[str, str]
) -> None:
    with host.session("workshop", "calls") as stream:
        until(lambda: stream.call("whoami") and host.metric("gumcp_tool_calls_total", tool="whoami") > 0)
        before = host.metric("gumcp_tool_calls_total", server="workshop", tool=tool, outcome=outcome)
        observed = host.metric("gumcp_tool_call_seconds_count", server="workshop", tool=tool)
        stream.request("tools/call", {"name": tool, "arguments": arguments})
        assert moved(host, before, "gumcp_tool_calls_total", server="workshop", tool=tool, outcome=outcome) == 1
        assert moved(host, observed, "gumcp_tool_call_seconds_count", server="workshop", tool=tool) == 1


def test_result_that_is_an_error_and_a_call_that_was_cancelled_have_outcomes_of_their_own(host: HostProcess) -> None:
    with host.session("workshop", "outcomes") as stream:
        errors = host.metric("gumcp_tool_calls_total", server="workshop", outcome="error")
        assert stream.request("tools/call", {"name": "no such tool"})["result"]["isError"]
        assert moved(host, errors, "gumcp_tool_calls_total", server="workshop", outcome="error") == 1
        cancelled = host.metric("gumcp_tool_calls_total", server="workshop", outcome="cancelled")
        with host.session("workshop", "outcomes") as leaving:
            leaving.send(tool_call(1, "wait", seconds=60))
            assert leaving.call("echo", text="x") == "x"
        until(lambda: moved(host, cancelled, "gumcp_tool_calls_total", server="workshop", outcome="cancelled") == 1)


def test_no_client_can_grow_the_labels(host: HostProcess) -> None:
    with host.session("workshop", "labels:key", name="canary-client") as stream:
        for number in range(20):
            stream.request("tools/call", {"name": f"canary-tool-{number}", "arguments": {}})
            stream.request(f"canary/method-{number}")
            host.request("GET", f"/canary-server-{number}/canary-key")
            host.request("POST", f"/workshop/labels:key/messages/?session_id=canary-{number}", b"{}", JSON)
    text = host.metrics_text()
    assert "canary" not in text
    assert host.metric("gumcp_tool_calls_total", tool="(other)") >= 20


@pytest.mark.parametrize(
    ("reason", "method", "path", "headers"),
    [
        ("unknown_server", "GET", "/nowhere/x", {}),
        ("bad_session_key", "GET", "/workshop/%ff", {}),
        ("method_not_allowed", "PUT", "/workshop/x", {}),
        ("unknown_session", "POST", "/workshop/x/messages/?session_id=x", JSON),
        ("instance_unavailable", "GET", "/moody/raises-refused", {}),
        ("bad_origin", "GET", "/workshop/x", {"Origin": "https://evil.example"}),
        ("bad_host", "GET", "/workshop/x", {"Host": "evil.example"}),
    ],
)
def test_refused_requests_are_counted_by_reason(
    host: HostProcess, reason: str, method: str, path: str, headers: dict[str, str]
) -> None:
    before = host.metric("gumcp_refused_requests_total", reason=reason)
    assert host.request(method, path, headers=headers).status >= 400
    assert moved(host, before, "gumcp_refused_requests_total", reason=reason) == 1


@pytest.mark.parametrize(
    ("reason", "body", "headers"),
    [
        ("invalid_message", b"{", {}),
        ("unsupported_media_type", b"{}", {"Content-Type": "text/plain"}),
        ("body_too_large", b" " * (4 * 1024 * 1024 + 1), {}),
    ],
)
def test_refused_messages_are_counted_by_reason(
    host: HostProcess, reason: str, body: bytes, headers: dict[str, str]
) -> None:
    with host.session("workshop", "refused") as stream:
        before = host.metric("gumcp_refused_requests_total", reason=reason)
        assert stream.post(body, headers).status >= 400
        assert moved(host, before, "gumcp_refused_requests_total", reason=reason) == 1


def test_lane_lag_instances_and_load_failures_are_told(host: HostProcess) -> None:
    with host.session("workshop", "told"):
        assert host.metric("gumcp_instances", server="workshop") >= 1
        assert 'gumcp_lane_lag_seconds{server="workshop"}' in host.metrics_text()
    assert host.metric("gumcp_load_failures_servers") == 0


def test_names_follow_the_contract(host: HostProcess) -> None:
    names = set(re.findall(r"^# TYPE (gumcp_\S+)", host.metrics_text(), re.MULTILINE))
    assert {"gumcp_active_connections", "gumcp_connection_total"} <= names
    assert "django_http_requests_before_middlewares_total" in host.metrics_text()
