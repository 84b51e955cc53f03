"""What is recorded of calls and refusals: from a request to its row and the admin's list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client, override_settings

from gateway.access import doorkeeper
from gateway.access.keys import make_key
from gateway.instances import call_log
from gateway.instances.call_log import Call, CallLog, Conversation
from gateway.instances.traffic import ServerTraffic
from gateway.records import call_admin, calls
from gateway.records.calls import CallRows
from gateway.records.models import CallRecord, ServerRecord
from tests.support.in_process import InProcessHost, host_in_process
from tests.support.key_rows import Rows
from tests.support.server_folders import WriteServer

SERVER = """
    from mcp.server import Server
    from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool

    async def list_tools(ctx, params):
        return ListToolsResult(tools=[Tool(name="echo", input_schema={"type": "object"})])

    async def call_tool(ctx, params):
        if params.name == "break":
            raise ValueError("canary-argument")
        return CallToolResult(content=[TextContent(type="text", text="canary-result")], is_error=params.name == "fail")

    def server(user_id, api_key=None):
        return Server("workshop", version="1", on_list_tools=list_tools, on_call_tool=call_tool)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""

ARGUMENTS = {"text": "canary-argument"}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Rows:
    rows = Rows()
    monkeypatch.setattr(doorkeeper, "KeyStore", lambda: rows)
    return rows


@pytest.fixture
def with_keys() -> Iterator[None]:
    with override_settings(GUMCP_AUTH="keys"):
        yield


@asynccontextmanager
async def recording_host(write_server: WriteServer) -> AsyncIterator[InProcessHost]:
    async with host_in_process(write_server("workshop", SERVER)) as host:
        host.host.call_log.start()
        try:
            yield host
        finally:
            host.host.call_log.stop()


def taken(host: InProcessHost) -> list[Call]:
    return host.host.call_log.take(is_last=True)


async def test_calls_of_every_era_are_noted_with_who_called_what_and_how_it_ended(write_server: WriteServer) -> None:
    async with recording_host(write_server) as host:
        async with await host.open_sse("/workshop/ada") as sse:
            await sse.initialize()
            await sse.request("tools/call", {"name": "echo", "arguments": ARGUMENTS})
        session = await host.initialize("/workshop/bob")
        for name in ("fail", "break"):
            await session.start(name, **ARGUMENTS).reply()
        call = {"name": "echo", "arguments": ARGUMENTS}
        await host.post_stateless("/workshop/eve", "tools/call", call).reply()
        noted = taken(host)
    assert [(call.user_id, call.tool, call.outcome, call.conversation.transport) for call in noted] == [
        ("ada", "echo", "ok", "sse"),
        ("bob", "fail", "error", "streamable-http"),
        ("bob", "break", "exception", "streamable-http"),
        ("eve", "echo", "ok", "stateless"),
    ]
    assert [call.conversation.protocol_version for call in noted] == [
        "2025-11-25",
        "2025-11-25",
        "2025-11-25",
        "2026-07-28",
    ]
    assert all(call.seconds > 0 and call.size_bytes > 40 for call in noted)
    assert [call.conversation.session_id is None for call in noted] == [False, False, False, True]
    assert noted[2].reason == "ValueError"
    assert "canary" not in repr(noted)


@pytest.mark.usefixtures("with_keys")
async def test_refused_key_is_noted_with_its_public_part_and_the_reason(write_server: WriteServer, keys: Rows) -> None:
    good, revoked, expired = keys.issue("ada"), keys.issue("ada", is_active=False), keys.issue("ada")
    keys.change(expired, expires_at=datetime.now(UTC) - timedelta(1))
    elsewhere, narrow = keys.issue("ada", servers={"other": None}), keys.issue("ada", servers={"workshop": {"echo"}})
    async with recording_host(write_server) as host:
        for key, user in ((revoked, "ada"), (expired, "ada"), (good, "bob"), (elsewhere, "ada"), (make_key(), "ada")):
            assert (await host.post(f"/workshop/{user}:{key.text}", {}).reply()).status in (401, 403)
        await host.post("/workshop/ada:not-a-key", {}).reply()
        await host.post("/invented-by-a-stranger", {}).reply()
        session = await host.initialize(f"/workshop/ada:{narrow.text}")
        await session.start("secret").reply()
        noted = taken(host)
    assert [(call.server_name, call.user_id, call.key, call.tool, call.reason) for call in noted] == [
        (
            "workshop",
            "ada",
            revoked.public,
            "",
            "unauthenticated: the key was revoked, or its user was disabled",
        ),
        ("workshop", "ada", expired.public, "", "unauthenticated: the key has expired"),
        (
            "workshop",
            "ada",
            good.public,
            "",
            "unauthenticated: the user in the URL is not the owner of the key",
        ),
        ("workshop", "ada", elsewhere.public, "", "out_of_scope: the key is not for this server"),
        ("workshop", "", "", "", "unauthenticated: there is no such key"),
        ("workshop", "", "", "", "unauthenticated: what was presented is not a key of this host, or is mistyped"),
        ("", "", "", "", "unauthenticated: no key was presented"),
        ("workshop", "ada", narrow.public, "secret", "out_of_scope: the key is not for this tool"),
    ]
    assert {call.outcome for call in noted} == {"refused"}
    assert good.text not in repr(noted)


@pytest.mark.usefixtures("with_keys")
async def test_limit_that_refused_a_key_is_named(write_server: WriteServer, keys: Rows) -> None:
    key = keys.issue("ada")
    with override_settings(GUMCP_LIMIT_REQUESTS_PER_KEY="1/hour", GUMCP_LIMIT_CALLS_PER_KEY="1/hour"):
        async with recording_host(write_server) as host:
            statuses = [(await host.post(f"/workshop/ada:{key.text}", {}).reply()).status for _ in range(2)]
            noted = taken(host)
    assert statuses[1] == 429
    assert [(call.key, call.reason) for call in noted if call.reason.startswith("rate_limit")] == [
        (key.public, "rate_limit: the limit of requests of a key is used up")
    ]


def test_refusals_that_are_alike_make_two_rows_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = CallLog(), [6000.0]
    monkeypatch.setattr(call_log.time, "time", lambda: now[0])
    for _ in range(500):
        log.note_refusal(Call("workshop", "", "ada", "gumcp_public00", reason="rate_limit", ended_at=now[0]))
    assert [call.times for call in log.take()] == []  # it is not settled yet
    now[0] += 1
    assert [call.times for call in log.take()] == [1]
    now[0] += 60
    assert [(call.times, call.key) for call in log.take()] == [(499, "gumcp_public00")]
    assert log.refusals.counts() == {"rate_limit": 500}


def test_record_can_be_switched_off_and_traffic_is_counted_all_the_same() -> None:
    log = CallLog(keeps_calls=False)
    traffic = log.traffic("workshop")
    log.note(traffic, Call("workshop", "echo", "ada", outcome="timeout", reason="It took too long."), "echo")
    log.note_refusal(Call("workshop", "", reason="rate_limit"))
    assert log.take(is_last=True) == []
    assert (traffic.calls, traffic.errors, log.refusals.counts()) == (1, 1, {"rate_limit": 1})
    assert traffic.last_failure is not None


# -- Rows ------------------------------------------------------------------------------------------------------------


def ended(**facts: Any) -> Call:
    return Call(**{"server_name": "workshop", "tool": "echo", "user_id": "ada", "outcome": "ok", **facts})


def write(*noted: Call) -> CallLog:
    log = CallLog()
    for call in noted:
        log.note(ServerTraffic(), call, call.tool)
    CallRows(log).write(is_last=True)
    return log


HOSTILE = "<b onclick=x>\u202eevil\x00\n" + "x" * 300


@pytest.mark.django_db
def test_names_that_clients_send_are_stored_escaped_and_bounded_and_shown_as_text(admin_client: Client) -> None:
    write(ended(tool=HOSTILE[:100], conversation=Conversation("sse", "9" * 300, HOSTILE, "1", uuid4())))
    row = CallRecord.objects.get()
    assert row.tool.startswith(r"<b onclick=x>\u202eevil\x00\n")
    assert len(row.tool) <= 100
    assert (len(row.client), row.protocol_version) == (120, "unknown")
    page = admin_client.get("/admin/records/callrecord/").content.decode()
    assert "&lt;b onclick=x&gt;" in page
    assert "<b onclick" not in page
    assert "\u202e" not in page


@pytest.mark.django_db
def test_key_that_a_client_sends_as_a_name_is_stored_as_its_public_part() -> None:
    key = f"gumcp_Ab3dE6gH_{'x' * 49}"
    write(ended(tool=key, conversation=Conversation("sse", "2025-11-25", key, "1", uuid4())))
    row = CallRecord.objects.get()
    assert (row.tool, row.client) == ("gumcp_Ab3dE6gH", "gumcp_Ab3dE6gH 1")


@pytest.mark.django_db
def test_calls_that_could_not_be_written_are_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    log = CallLog()
    for number in range(3):
        log.note(ServerTraffic(), ended(tool=f"tool-{number}"), "echo")
    rows = CallRows(log)

    def fail(*arguments: Any) -> None:
        raise OperationalError("locked")

    with monkeypatch.context() as patched:
        patched.setattr(rows, "_insert", fail)
        with pytest.raises(OperationalError):
            rows.write(is_last=True)
    rows.write(is_last=True)
    assert list(CallRecord.objects.order_by("id").values_list("tool", flat=True)) == ["tool-0", "tool-1", "tool-2"]


@pytest.mark.django_db
@override_settings(GUMCP_MAX_CALL_ROWS=10)
def test_oldest_rows_are_deleted_by_number_and_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "DELETED_AT_ONCE", 7)
    log = write(*(ended(tool=str(number)) for number in range(25)))
    CallRows(log).delete_surplus(chunks=20)
    assert [row.tool for row in CallRecord.objects.order_by("id")] == [str(number) for number in range(15, 25)]
    CallRecord.objects.filter(tool__lt="20").update(at=datetime.now(UTC) - timedelta(days=8))
    CallRows(log).delete_surplus()
    assert [row.tool for row in CallRecord.objects.order_by("id")] == [str(number) for number in range(20, 25)]


# -- The list --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_list_is_filtered_by_user_server_tool_outcome_and_key(admin_client: Client) -> None:
    for server in ("workshop", "kitchen"):
        ServerRecord.objects.create(
            name=server, folder=server, status="loaded", loaded_at=datetime.now(UTC), tools=["echo", "cook"]
        )
    write(
        ended(tool="echo"),
        ended(tool="cook", user_id="bob", outcome="error"),
        ended(server_name="kitchen", tool="cook", key="gumcp_public00"),
        ended(tool="", outcome="refused", key="gumcp_public00", reason="unauthenticated: the key has expired"),
    )

    def found(query: str) -> list[int]:
        context = admin_client.get(f"/admin/records/callrecord/?{query}").context
        assert context is not None, query
        return [row.id for row in context["cl"].result_list]

    first = CallRecord.objects.order_by("id").values_list("id", flat=True)[0]
    expected = {
        "": [3, 2, 1, 0],
        "server_name=kitchen": [2],
        "server_name=workshop&tool=cook": [1],
        "outcome=failed": [3, 1],
        "outcome=refused": [3],
        "q=bob": [1],
        "q=gumcp_public00…": [3, 2],
        "user_id=ada&outcome=ok": [2, 0],
        "key=gumcp_public00&outcome=refused": [3],
    }
    assert {query: [row_id - first for row_id in found(query)] for query in expected} == expected
    assert "the key has expired" in admin_client.get("/admin/records/callrecord/?q=gumcp_public00").content.decode()


@pytest.mark.django_db
def test_list_counts_no_more_rows_than_it_has_pages_for_and_no_distinct_values(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(call_admin, "MAX_COUNTED", 150)
    write(*(ended() for _ in range(400)))
    admin_client.get("/admin/")
    with django_assert_max_num_queries(12) as queries:
        page = admin_client.get("/admin/records/callrecord/").context["cl"]
    assert (page.result_count, len(page.result_list)) == (150, 100)
    of_calls = [query["sql"] for query in queries if "records_callrecord" in query["sql"]]
    assert all("LIMIT" in sql for sql in of_calls)
    assert not any("DISTINCT" in sql for sql in of_calls)


@pytest.mark.django_db
def test_operator_without_the_permission_sees_no_calls(client: Client) -> None:
    client.force_login(User.objects.create_user("eve", is_staff=True))
    assert client.get("/admin/records/callrecord/").status_code == 403
