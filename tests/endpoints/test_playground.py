"""The playground's endpoint: who may open a session as whom, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.middleware.csrf import _get_new_csrf_string
from django.test import override_settings

from gateway.access.models import ApiKey, AuditEvent
from gateway.access.store import issue_key
from gateway.console.playground import PREFIX
from gateway.endpoints.playground import LOGGED_OUT, PlaygroundEndpoint
from gateway.endpoints.routing import HttpRouter
from tests.support.canary import CANARY
from tests.support.in_process import InProcessHost, Reply, StreamClient, host_in_process, no_django
from tests.support.logged_in import browser, make_operator
from tests.support.processes import PLAIN_SERVERS
from tests.support.streamable import initialize_message
from tests.support.wire import request, tool_call

pytestmark = pytest.mark.django_db(transaction=True)

KEYS: Final = override_settings(GUMCP_AUTH="keys", GUMCP_LIMIT_REQUESTS_PER_KEY="20/hour")
JSON: Final = {"Content-Type": "application/json"}


@dataclass
class Operator:
    """The browser of somebody who is logged in."""

    user: User
    session_id: str
    csrf: str

    @property
    def headers(self) -> dict[str, str]:
        cookies = f"{django_settings.SESSION_COOKIE_NAME}={self.session_id}; csrftoken={self.csrf}"
        return {**JSON, "Cookie": cookies, "X-CSRFToken": self.csrf, "Origin": "http://localhost"}


def log_in(name: str, *permissions: str, **fields: Any) -> Operator:
    user = make_operator(name, *permissions, **fields)
    return Operator(user, browser(user).cookies[django_settings.SESSION_COOKIE_NAME].value, _get_new_csrf_string())


@pytest.fixture
def olga(transactional_db: None) -> Operator:
    return log_in("olga", "run_as")


@pytest.fixture
def key(transactional_db: None) -> ApiKey:
    """Ada's key, for two tools of one server."""
    return issue_key(User.objects.create_user("ada"), scope={"workshop": ["whoami", "compare_key"]})[0]


@contextmanager
def with_playground(host: InProcessHost) -> Iterator[InProcessHost]:
    host.application = HttpRouter(host.host, PlaygroundEndpoint(host.host, no_django))
    yield host


@pytest.fixture
async def host(transactional_db: None) -> AsyncIterator[InProcessHost]:
    async with host_in_process(PLAIN_SERVERS) as host:
        with with_playground(host):
            yield host


@pytest.fixture
async def host_with_keys(transactional_db: None) -> AsyncIterator[InProcessHost]:
    with KEYS:
        async with host_in_process(PLAIN_SERVERS) as host:
            with with_playground(host):
                yield host


class Page(StreamClient):
    """A page whose session is open."""

    def __init__(self, host: InProcessHost, operator: Operator, place: str = "workshop/ada") -> None:
        self.place, self._host, self._operator = place, host, operator
        super().__init__(host.open("POST", f"{PREFIX}{place}/open", b"{}", operator.headers))
        self.id = ""

    async def start(self) -> Page:
        event = await self.stream.event()
        assert event.name == "session", event
        self.id = event.json["id"]
        await self.request("initialize", initialize_message()["params"])
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    async def post(self, message: Any, **headers: str) -> Reply:
        fields = {**self._operator.headers, "Mcp-Session-Id": self.id, **headers}
        return await self._host.request("POST", f"{PREFIX}{self.place}/send", json.dumps(message).encode(), fields)

    async def send(self, message: Any) -> None:
        reply = await self.post(message)
        assert reply.status == 202, reply

    async def end_reason(self) -> str:
        while (event := await self.stream.event()).name != "end":
            pass
        await self.stream.reply()
        return str(event.json["reason"])


async def status_of_open(host: InProcessHost, headers: dict[str, str], place: str = "workshop/ada") -> int:
    return (await host.request("POST", f"{PREFIX}{place}/open", b"{}", headers)).status


def events() -> list[tuple[str, str, str, str]]:
    return list(AuditEvent.objects.order_by("id").values_list("actor", "action", "target", "detail"))


async def test_operator_runs_tools_as_a_user_and_the_audit_log_has_it(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    assert (await page.call("whoami")).startswith("ada ")
    (session,) = host.host.sessions
    assert (session.transport, session.identity.user_id, session.calls) == ("console", "ada", 1)
    page.stream.leave()
    await page.stream.task
    assert len(host.host.sessions) == 0
    assert await asyncio.to_thread(events) == [
        ("olga", "run as", "workshop as ada", "opens a session"),
        ("olga", "run as", "workshop as ada", "tool whoami"),
    ]


async def test_three_progress_events_come_before_the_result(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    call = {"name": "progress", "arguments": {"steps": 3}, "_meta": {"progressToken": "p"}}
    await page.send(request("tools/call", call, "call"))
    messages = [await page.stream.message() for _ in range(4)]
    assert [message.get("params", {}).get("progress") for message in messages] == [1, 2, 3, None]
    assert messages[3]["id"] == "call"


async def test_cancel_reaches_the_handler(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    await page.send(tool_call("slow", "wait", seconds=60, name="from-the-page"))
    await page.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "slow"}})
    # A call that arrives together with the cancellation may be handled first.
    async with asyncio.timeout(10):
        while await page.call("was_cancelled", name="from-the-page") != "True":
            pass


async def test_server_sees_nothing_of_the_operators_cookies(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    assert await page.call("request_says", text="/workshop/ada") == "True"
    for secret in (olga.session_id, olga.csrf, page.id, "cookie"):
        assert await page.call("request_says", text=secret) == "False"


async def test_key_is_chosen_by_its_public_part_and_its_scope_applies(
    host_with_keys: InProcessHost, olga: Operator, key: ApiKey
) -> None:
    page = await Page(host_with_keys, olga, f"workshop/{key.public}").start()
    assert (await page.call("whoami")).startswith("ada ")
    tools = (await page.request("tools/list"))["result"]["tools"]
    assert {tool["name"] for tool in tools} == {"whoami", "compare_key"}
    assert (await page.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}))["error"]
    assert await status_of_open(host_with_keys, olga.headers, f"bystander/{key.public}") == 403
    assert await status_of_open(host_with_keys, olga.headers, "workshop/gumcp_nobodys0") == 404
    assert await status_of_open(host_with_keys, olga.headers, "workshop/ada") == 404
    detail = (await asyncio.to_thread(events))[0][3]
    assert detail == f"opens a session with the key {key.public}"


async def test_limits_of_the_key_apply(host_with_keys: InProcessHost, olga: Operator, key: ApiKey) -> None:
    page = await Page(host_with_keys, olga, f"workshop/{key.public}").start()
    statuses = [(await page.post(request("ping", None, number))).status for number in range(18)]
    assert statuses == [202] * 17 + [429]


async def test_without_permission_login_or_csrf_token_the_answer_is_the_same_403(
    host: InProcessHost, olga: Operator
) -> None:
    others = [await asyncio.to_thread(log_in, name, *permissions) for name, permissions in (("otto", ()), ("iris", ()))]
    user = await asyncio.to_thread(log_in, "ulf", "run_as")
    await User.objects.filter(username="ulf").aupdate(is_staff=False)
    without_token = {name: value for name, value in olga.headers.items() if name != "X-CSRFToken"}
    refused = [
        *(operator.headers for operator in (*others, user)),
        JSON,
        without_token,
        {**olga.headers, "X-CSRFToken": _get_new_csrf_string()},
        {**olga.headers, "Content-Type": "text/plain"},
        {**olga.headers, "Cookie": f"{django_settings.SESSION_COOKIE_NAME}=wrong; csrftoken={olga.csrf}"},
        {**olga.headers, "Origin": "https://evil.example"},
    ]
    replies = [await host.request("POST", f"{PREFIX}workshop/ada/open", b"{}", headers) for headers in refused]
    assert [reply.status for reply in replies] == [403] * len(refused)
    assert {reply.body for reply in replies[:-1]} == {b'{"error": "Not permitted."}'}
    assert (await host.request("GET", f"{PREFIX}workshop/ada/open", b"", olga.headers)).status == 405
    assert len(host.host.sessions) == 0
    assert await asyncio.to_thread(events) == []


async def test_session_of_another_operator_cannot_be_steered(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    otto = await asyncio.to_thread(log_in, "otto", "run_as")
    assert (await page.post(tool_call(1, "whoami"), **otto.headers)).status == 404
    assert (await page.post(tool_call(1, "whoami"), **{"X-CSRFToken": "wrong"})).status == 403
    page.place = "workshop/bob"
    assert (await page.post(tool_call(1, "whoami"))).status == 404
    (session,) = host.host.sessions
    assert session.calls == 0


async def test_session_id_of_the_playground_opens_nothing_elsewhere(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    body = tool_call(1, "whoami")
    assert (await host.post("/workshop/ada", body, {"Mcp-Session-Id": page.id}).reply()).status == 404
    assert (await host.post(f"/workshop/ada/messages/?session_id={page.id}", body).reply()).status == 404


@override_settings(GUMCP_MAX_PLAYGROUND_SESSIONS_PER_OPERATOR=1, GUMCP_MAX_PLAYGROUND_SESSIONS=2)
async def test_number_of_sessions_is_limited(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    assert await status_of_open(host, olga.headers, "workshop/bob") == 503
    others = [await asyncio.to_thread(log_in, name, "run_as") for name in ("otto", "iris")]
    await Page(host, others[0], "workshop/bob").start()
    assert await status_of_open(host, others[1].headers) == 503
    page.stream.leave()
    await page.stream.task
    await Page(host, olga).start()


async def test_session_that_is_not_used_ends(
    host: InProcessHost, olga: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.endpoints.playground.LOOK_SECONDS", 0.05)
    page = await Page(host, olga).start()
    # Not before: it must not end while it is being opened.
    with override_settings(GUMCP_PLAYGROUND_IDLE_SECONDS=0.1):
        assert await page.end_reason() == "it was not used for too long"


async def test_session_ends_soon_after_its_operator_logs_out(
    host: InProcessHost, olga: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.endpoints.playground.LOOK_SECONDS", 0.05)
    page = await Page(host, olga).start()
    await User.objects.filter(pk=olga.user.pk).aupdate(is_active=False)
    assert await page.end_reason() == LOGGED_OUT


@override_settings(GUMCP_SLOW_READER_SECONDS=0.1, GUMCP_STREAM_BUFFER_BYTES=10_000)
async def test_page_that_does_not_read_is_cut(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    page.stream.may_read.clear()
    await page.send(tool_call("much", "fill", characters=100_000))
    async with asyncio.timeout(10):
        while len(host.host.sessions):
            host.host.streams.keep_up(60)
            await asyncio.sleep(0.01)
    page.stream.may_read.set()


async def test_operator_is_told_why_somebody_ended_the_session(host: InProcessHost, olga: Operator) -> None:
    page = await Page(host, olga).start()
    for session in host.host.sessions:
        session.end("ended by an operator")
    assert await page.end_reason() == "ended by an operator"
    assert (await page.post(tool_call(1, "whoami"))).status == 404


@pytest.mark.parametrize(
    ("place", "status"),
    [("nothing/ada", 404), ("workshop/ada:key", 400), ("workshop/a..b", 400), ("workshop", 404), ("workshop//x", 404)],
)
async def test_bad_places_are_refused(host: InProcessHost, olga: Operator, place: str, status: int) -> None:
    assert await status_of_open(host, olga.headers, place) == status


async def test_arguments_and_uris_are_in_no_log_and_no_row(
    host: InProcessHost, olga: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    page = await Page(host, olga).start()
    await page.call("echo", text=CANARY)
    await page.request("tools/call", {"name": "fail", "arguments": {"text": CANARY}})
    await page.request("resources/read", {"uri": f"test://{CANARY}"})
    await page.request("prompts/get", {"name": "hello", "arguments": {"text": CANARY}})
    assert (await page.post([CANARY])).status == 400
    written = await asyncio.to_thread(events)
    assert [event[3] for event in written[1:]] == ["tool echo", "tool fail", "reads a resource", "prompt hello"]
    for secret in (CANARY, page.id, olga.session_id, olga.csrf):
        assert secret not in str(written)
        assert secret not in caplog.text
