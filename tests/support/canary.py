"""Requests with a canary in their key: it must not turn up in anything that the host writes down or answers."""

from __future__ import annotations

from tests.support.host_process import HostProcess
from tests.support.wire import JSON, tool_call

CANARY = "canary-7f3a"
BODY_LIMIT = 10_000


def provoke(host: HostProcess) -> list[bytes]:
    """Make requests of all kinds with the canary in their key, and return what was answered to those that failed."""
    answered = []
    for key in (f"ada:{CANARY}", f"ada%3A{CANARY}", f"{CANARY.upper()}-user:{CANARY}"):
        with host.session("workshop", key) as stream:
            stream.call("echo", text="x")
            stream.request("tools/call", {"name": "fail", "arguments": {}})
            stream.request("tools/call", {"name": "leave", "arguments": {}})
            stream.send(tool_call("twice", "wait", seconds=0.1))
            bad = (b"{", b"[]", b"\xff", b"null", b" " * BODY_LIMIT + b" ")
            answered += [stream.post(body).body for body in bad]
            answered.append(stream.post(tool_call("twice", "echo", text="x")).body)
            answered.append(stream.post(tool_call(1, "echo"), {"Content-Type": "text/plain"}).body)
            stream.answer("twice")
        answered.append(stream.post(tool_call(1, "echo", text="x")).body)
    for mood in ("raises", "exits", "nonsense", "optionless", "lifeless", "endless"):
        answered.append(host.request("GET", f"/moody/{mood}-secret:{CANARY}").body)
    paths = [
        *(f"/nowhere/ada:{CANARY}", f"/nowhere/{CANARY}", f"/nowhere/ada%3a{CANARY}/messages?session_id={CANARY}"),
        *(f"/workshop/:{CANARY}", f"/workshop/%ff:{CANARY}", f"/workshop/%zz:{CANARY}"),
        *(f"/workshop/ada:{CANARY}/messages/?session_id={CANARY}", f"/workshop/ada:{CANARY}/other"),
        *(f"//workshop/ada:{CANARY}", f"/admin/ada:{CANARY}", f"/static/ada:{CANARY}", f"/metrics/ada:{CANARY}"),
        *(f"/workshop/ada:{CANARY}%00", f"/health_check/ada:{CANARY}", f"/favicon.ico/ada:{CANARY}"),
        f"/workshop/{'a' * 300}:{CANARY}",
    ]
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            answered.append(host.request(method, path, headers=JSON).body)
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Accept": "text/plain"}):
        answered.append(host.request("GET", f"/workshop/ada:{CANARY}", headers=headers).body)
        answered.append(host.request("GET", f"/admin/?next=/workshop/ada:{CANARY}", headers=headers).body[:0])
    answered.append(host.request("POST", f"/workshop/ada:{CANARY}", b"{}", JSON).body)
    return answered
