"""What Prometheus reads, moved by real traffic."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.streamable import ACCEPT_BOTH, HandshakeSession, StatelessClient
from tests.support.wire import JSON, tool_call


def moved(host: HostProcess, before: float, name: str, **labels: str) -> float:
    return host.metric(name, **labels) - before


def test_gauge_equals_the_number_of_open_streams(host: HostProcess) -> None:
    def gauge() -> float:
        return host.metric("gumcp_active_connections", server="workshop")

    until(lambda: gauge() == 0)  # what other tests have left is on its way out
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
    until(lambda: host.metric("gumcp_active_connections") == 0)


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
    labels = {"server": "workshop", "tool": tool, "outcome": outcome}
    with host.session("workshop", "calls") as stream:
        until(lambda: stream.call("whoami") and host.metric("gumcp_tool_calls_total", tool="whoami") > 0)
        before = host.metric("gumcp_tool_calls_total", **labels)
        observed = host.metric("gumcp_tool_call_seconds_count", **labels)
        stream.request("tools/call", {"name": tool, "arguments": arguments})
        assert moved(host, before, "gumcp_tool_calls_total", **labels) == 1
        assert moved(host, observed, "gumcp_tool_call_seconds_count", **labels) == 1


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


def series(host: HostProcess) -> set[str]:
    """Every time series of a host: its name and labels."""
    return {line.rpartition(" ")[0] for line in host.metrics_text().splitlines() if not line.startswith("#")}


def invent(host: HostProcess, number: int) -> None:
    """Send invented values of everything that a client can choose, in every place where a host may look at them."""
    made_up = f"canary-{number}"
    letters = "".join(chr(ord("A") + int(digit)) for digit in str(number))
    key = f"labels-{made_up}:{made_up}"
    for method in (f"CANARY{letters}", f"canary{letters}", "BREW", "PROPFIND", "DELETE", "PATCH", "OPTIONS", "HEAD"):
        for target in ("/", "/health_check", "/admin/", f"/admin/{made_up}/", f"/static/{made_up}.css"):
            host.request(method, target)
        host.request(method, f"/workshop/{key}")
        host.request(method, f"/{made_up}/{key}")
    for target in (
        *(f"/{made_up}", f"/{made_up}/{key}/{made_up}", f"/.well-known/{made_up}", f"/?{made_up}={made_up}"),
        f"/workshop/{key}/messages/?session_id={made_up}",
    ):
        host.request("GET", target)
        host.request("POST", target, b"{}", JSON)
    for header in ("Host", "Origin", "Accept", "Content-Type", "Mcp-Session-Id", "Last-Event-ID", "Authorization"):
        host.request("POST", f"/workshop/{key}", b"{}", {**JSON, header: f"{made_up}.example"})
        host.request("GET", "/admin/login/", headers={header: f"{made_up}.example"})
    for version in ("2026-07-28", made_up):
        fields = {"MCP-Protocol-Version": version, "Mcp-Method": made_up, "Mcp-Name": made_up}
        host.request("POST", f"/workshop/{key}", b"{}", {**ACCEPT_BOTH, **fields})
    with host.session("workshop", key, name=made_up, version=made_up) as stream:
        stream.request(made_up)
        stream.request("tools/call", {"name": made_up, "arguments": {}})
        stream.request("resources/read", {"uri": f"{made_up}:///x"})
        stream.request("prompts/get", {"name": made_up})
    client = {"name": made_up, "version": made_up}
    with HandshakeSession(host, "workshop", key, made_up, clientInfo=client) as session:
        with session.start(made_up) as under_way:
            under_way.reply()
        with session.request(made_up) as under_way:
            under_way.reply()
    with StatelessClient(host, "workshop", key).start(made_up) as under_way:
        under_way.reply()


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_nothing_that_clients_make_up_adds_a_time_series(start_host: StartHost, asgi_server: str) -> None:
    with start_host(asgi_server=asgi_server) as host:
        invent(host, 0)
        before = series(host)
        for number in range(1, 8):
            invent(host, number)
        assert series(host) - before == set()
        assert "canary" not in host.metrics_text().lower()
        assert host.metric("gumcp_tool_calls_total", tool="(other)") >= 24
        assert len(before) < 1000


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


def test_names_types_and_texts_follow_the_conventions_of_prometheus(host: HostProcess) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = host.metrics_text()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert re.search(r'^gumcp_build_info\{asgi_server="daphne [\d.]+",.*\} 1\.0$', text, re.MULTILINE)


def test_names_follow_the_contract(host: HostProcess) -> None:
    names = set(re.findall(r"^# TYPE (gumcp_\S+)", host.metrics_text(), re.MULTILINE))
    assert {"gumcp_active_connections", "gumcp_connection_total"} <= names
    assert "django_http_requests_before_middlewares_total" in host.metrics_text()
