"""The admin's lists and pages of servers, clients, users and keys: what they show to whom, by how many queries."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.access.models import AuditEvent, LimitHit
from gateway.access.redaction import PathRedactor
from gateway.access.store import issue_key
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, ServerDefinition
from gateway.catalog.manifests import load_manifest
from gateway.catalog.registry import Registry
from gateway.host.server_log import ServerLog
from gateway.records.models import CallRecord, HostProcess, ServerRecord, SessionRecord
from gateway.upstreams.link_state import LinkState
from gateway.upstreams.slots import Slots
from tests.support.logged_in import browser, make_operator
from tests.support.mirror import lost_process, open_row

pytestmark = pytest.mark.django_db

SERVERS = "/admin/records/serverrecord/"
CLIENTS = "/admin/records/sessionrecord/"
HOSTILE = "<b onmouseover=alert(1)>\x1b[31m\u202egnirts\u202c" + "long " * 40
DEFINITIONS = [
    {"name": "echo", "title": "Echo", "description": "Says it again.", "inputSchema": {"required": ["<text>"]}},
    {"name": "long"},
]


@pytest.fixture
def client() -> Client:
    return browser(User.objects.create_superuser("root"))


def server(name: str, **facts: Any) -> ServerRecord:
    facts = {"folder": f"/s/{name}", "status": "loaded", "loaded_at": timezone.now(), **facts}
    return ServerRecord.objects.create(name=name, **facts)


def shown(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return str(answer.content.decode())


def in_order(page: str, *texts: str) -> bool:
    places = [page.index(text) for text in texts]
    return places == sorted(places)


# -- Servers ---------------------------------------------------------------------------------------------------------


def test_servers_that_fail_come_first_and_removed_ones_only_when_asked_for(client: Client) -> None:
    server("a-good-one")
    server("b-switched-off", is_enabled=False)
    server("c-in-trouble", condition="Its lane is blocked.")
    server("d-failed", status="failed", reason="In main.py, line 1: <ValueError>")
    server("e-removed", status="removed")
    page = shown(client, SERVERS)
    assert in_order(page, "d-failed", "c-in-trouble", "b-switched-off", "a-good-one")
    assert "e-removed" not in page
    assert "In main.py, line 1: &lt;ValueError&gt;" in page
    assert "Its lane is blocked." in page
    assert "e-removed" in shown(client, f"{SERVERS}?status__exact=all")


def test_servers_list_counts_the_clients_that_are_connected_and_leads_to_them(client: Client) -> None:
    process = lost_process()
    server("time")
    open_row(process, server_name="time")
    open_row(process, server_name="time", state="stateless")
    open_row(process, server_name="time", state="closed")
    assert f'<a href="{CLIENTS}?server_name=time">2</a>' in shown(client, SERVERS)


def test_servers_page_has_its_url_its_tools_with_schemas_and_the_limits_in_force(client: Client) -> None:
    row = server(
        "time",
        version="1",
        tools=["echo", "long"],
        tool_definitions=json.dumps(DEFINITIONS),
        resources=["time://<now>"],
        max_threads=7,
    )
    with override_settings(GUMCP_AUTH="keys", GUMCP_PUBLIC_URL="https://mcp.example.com", SECURE_SSL_REDIRECT=False):
        page = shown(client, f"{SERVERS}{row.pk}/change/")
    assert ">https://mcp.example.com/time</pre>" in page
    assert 'href="/-/connect/?server=time"' in page
    assert "Says it again." in page
    assert "&lt;text&gt;" in page
    assert "too long to be kept" in page
    assert "time://&lt;now&gt;" in page
    limits = re.findall(r'<th scope="row">([^<]+)</th><td>([^<]+)</td><td>([^<]+)</td>', page)
    assert ("Call timeout seconds", "60 s", "the setting GUMCP_CALL_TIMEOUT_SECONDS") in limits
    assert ("Max threads", "7", "this page") in limits
    assert ("Max concurrent calls", "no limit", "the setting GUMCP_MAX_CONCURRENT_CALLS") in limits


def test_server_of_a_host_without_keys_has_the_url_of_the_one_who_looks(client: Client) -> None:
    assert "/time/root</pre>" in shown(client, f"{SERVERS}{server('time').pk}/change/")


@pytest.mark.usefixtures("log")
def test_page_of_a_command_has_its_command_line_without_secrets_and_its_processes(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "server.json").write_text('{"command": "npx", "args": ["--token", "s3cret"]}')
    definition = load_manifest(tmp_path / "notes", Slots())
    assert isinstance(definition, ServerDefinition)
    ada = LinkState("<ada>", True, 4711, 3, time.time(), "The server's process ended (exit status 1).")
    monkeypatch.setattr(definition.source, "states", lambda: [ada])
    monkeypatch.setattr(GatewayConfig.current(), "registry", Registry(Discovery([definition])))
    row = server("notes", folder=str(tmp_path / "notes"))
    page = shown(client, f"{SERVERS}{row.pk}/change/")
    assert "<dt>Command</dt><dd><code>npx --token [redacted]</code></dd>" in page
    assert "0 child processes" in page
    assert '<th scope="row">&lt;ada&gt;</th><td>running</td><td>4711</td><td>3</td>' in page
    assert "ended (exit status 1)" in page
    # Who uses a server is not for those who may not see clients.
    assert "4711" not in shown(browser(make_operator("staff", "view_serverrecord")), f"{SERVERS}{row.pk}/change/")


# -- Log lines -------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerLog]:
    log = ServerLog(GatewayConfig.current().registry)
    log.install()
    host = type("Host", (), {"server_log": log, "redactor": PathRedactor([])})()
    monkeypatch.setattr(GatewayConfig.current(), "host", host)
    yield log
    log.uninstall()


def test_log_lines_come_once_each_and_all_again_from_another_process(client: Client, log: ServerLog) -> None:
    path = f"{SERVERS}{server('workshop').pk}/log/"
    logging.getLogger("gateway.host.anything").warning("%s says <b>", "workshop")
    first = client.get(path).json()
    assert [(line["level"], line["text"]) for line in first["lines"]] == [("WARNING", "workshop says <b>")]
    again = client.get(path, {"process": first["process"], "after": first["last"]}).json()
    assert again == {**first, "lines": []}
    for process, after in (("1", first["last"]), (first["process"], "x"), (first["process"], "9" * 30)):
        assert client.get(path, {"process": process, "after": after}).json() == first


def test_log_lines_take_a_permission_of_their_own(log: ServerLog) -> None:
    row = server("workshop")
    viewer = browser(make_operator("staff", "view_serverrecord"))
    assert "log.js" in shown(viewer, f"{SERVERS}{row.pk}/change/")
    assert "data-url" not in shown(viewer, f"{SERVERS}{row.pk}/change/")
    assert viewer.get(f"{SERVERS}{row.pk}/log/").status_code == 403
    assert viewer.get(f"{SERVERS}999999/log/").status_code == 403
    assert Client().get(f"{SERVERS}{row.pk}/log/").status_code == 302
    User.objects.get().user_permissions.add(Permission.objects.get(codename="view_server_log"))
    assert "data-url" in shown(viewer, f"{SERVERS}{row.pk}/change/")
    assert viewer.get(f"{SERVERS}{row.pk}/log/").status_code == 200
    assert viewer.get(f"{SERVERS}999999/log/").status_code == 404


# -- Clients ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def process() -> HostProcess:
    return lost_process()


def test_clients_list_has_sessions_and_users_without_sessions_that_are_connected_the_latest_first(
    client: Client, process: HostProcess
) -> None:
    now = timezone.now()
    open_row(process, user_id="earlier", last_activity_at=now - timedelta(minutes=5))
    open_row(process, user_id="without", state="stateless", transport="stateless", protocol_version="2026-07-28")
    open_row(process, user_id="left", state="closed", closed_at=now, end_reason="idle")
    page = shown(client, CLIENTS)
    assert in_order(page, "without", "earlier")
    assert "2026-07-28" in page
    assert ">5 min ago</time>" in page
    assert ">left<" not in page
    assert ">left<" in shown(client, f"{CLIENTS}?state__exact=closed")
    assert in_order(shown(client, f"{CLIENTS}?state__exact=all"), "left", "earlier")


def test_names_that_clients_chose_are_text_everywhere(client: Client, process: HostProcess) -> None:
    User.objects.create_user("eve")
    row = open_row(process, user_id="eve", client_name=HOSTILE[:200], client_version=HOSTILE[:200], server_name="<i>x")
    CallRecord.objects.create(
        at=timezone.now(), session=row.pk, tool=HOSTILE[:100], outcome="error", reason=HOSTILE[:200]
    )
    eve = User.objects.get(username="eve").pk
    for path in (
        CLIENTS,
        f"{CLIENTS}{row.pk}/change/",
        "/admin/records/callrecord/",
        f"/admin/auth/user/{eve}/change/",
    ):
        page = shown(client, path)
        assert "&lt;b onmouseover" in page
        assert "<b onmouseover" not in page
        assert "<i>x" not in page
        assert not {"\x1b", "\u202e"} & set(page), path


def test_clients_page_leads_to_user_server_and_key_and_shows_its_calls(client: Client, process: HostProcess) -> None:
    ada, time = User.objects.create_user("ada"), server("time")
    key, _ = issue_key(ada)
    row = open_row(process, server_name="time", user_id="ada", key=key.public, client_name="x" * 150)
    facts = {"at": timezone.now(), "user_id": "ada", "server_name": "time", "milliseconds": 12.5, "size_bytes": 93}
    CallRecord.objects.create(session=row.pk, tool="now", outcome="ok", **facts)
    CallRecord.objects.create(session=row.pk, tool="later", outcome="exception", reason="ValueError", **facts)
    CallRecord.objects.create(session=uuid4(), tool="of-another", outcome="ok", **facts)
    page = shown(client, f"{CLIENTS}{row.pk}/change/")
    for address in (f"/admin/auth/user/{ada.pk}/", f"{SERVERS}{time.pk}/", f"/admin/access/apikey/{key.pk}/"):
        assert f'href="{address}change/"' in page
    assert "x" * 150 in page
    assert in_order(page, "later", "ValueError", ">now<")
    assert "12.5 ms" in page
    assert "93 B" in page
    assert "of-another" not in page
    viewer = browser(make_operator("staff", "view_sessionrecord"))
    assert "Its last calls" not in shown(viewer, f"{CLIENTS}{row.pk}/change/")


def test_page_of_a_client_without_session_shows_the_calls_of_its_user_at_its_server(
    client: Client, process: HostProcess
) -> None:
    row = open_row(process, user_id="ada", server_name="time", state="stateless", transport="stateless")
    facts = {"at": timezone.now(), "outcome": "ok", "transport": "stateless"}
    CallRecord.objects.create(user_id="ada", server_name="time", tool="hers", **facts)
    CallRecord.objects.create(user_id="bob", server_name="time", tool="his", **facts)
    page = shown(client, f"{CLIENTS}{row.pk}/change/")
    assert ">hers<" in page
    assert ">his<" not in page
    assert "End this session" not in page
    assert client.post(f"{CLIENTS}{row.pk}/end/", follow=True).content.decode().count("no open session to end") == 1
    row.refresh_from_db()
    assert not row.is_end_requested


def test_end_button_has_the_session_ended_and_is_in_the_audit_log(client: Client, process: HostProcess) -> None:
    row = open_row(process)
    assert f'action="{CLIENTS}{row.pk}/end/"' in shown(client, f"{CLIENTS}{row.pk}/change/")
    answer = client.post(f"{CLIENTS}{row.pk}/end/", follow=True)
    assert answer.redirect_chain == [(CLIENTS, 302)]
    assert "The session is being ended." in answer.content.decode()
    row.refresh_from_db()
    assert row.is_end_requested
    assert AuditEvent.objects.filter(action="session ended", actor="root").count() == 1
    assert client.get(f"{CLIENTS}{row.pk}/end/").status_code == 405
    assert client.post(f"{CLIENTS}{uuid4()}/end/").status_code == 404


def test_end_takes_a_permission_and_a_csrf_token(process: HostProcess) -> None:
    row = open_row(process)
    viewer = make_operator("staff", "view_sessionrecord")
    assert "End this session" not in shown(browser(viewer), f"{CLIENTS}{row.pk}/change/")
    assert browser(viewer).post(f"{CLIENTS}{row.pk}/end/").status_code == 403
    assert browser(viewer).post(f"{CLIENTS}{uuid4()}/end/").status_code == 403
    strict = browser(User.objects.create_superuser("root"), enforce_csrf_checks=True)
    assert strict.post(f"{CLIENTS}{row.pk}/end/").status_code == 403
    row.refresh_from_db()
    assert not row.is_end_requested


# -- Users and keys --------------------------------------------------------------------------------------------------


def test_users_page_has_keys_clients_and_the_way_to_calls(client: Client, process: HostProcess) -> None:
    ada = User.objects.create_user("ada")
    key, _ = issue_key(ada, label="laptop")
    open_row(process, user_id="ada", client_name="her-client")
    open_row(process, user_id="bob", client_name="his-client")
    page = shown(client, f"/admin/auth/user/{ada.pk}/change/")
    assert key.public in page
    assert "laptop" in page
    assert "her-client" in page
    assert "his-client" not in page
    assert 'href="/admin/records/callrecord/?q=ada"' in page
    listed = shown(client, "/admin/auth/user/")
    assert f'<a href="/admin/access/apikey/?user__id__exact={ada.pk}">1</a>' in listed
    assert f'<a href="{CLIENTS}?user_id=ada">1</a>' in listed


def test_users_page_hides_what_the_operator_may_not_see(process: HostProcess) -> None:
    ada = User.objects.create_user("ada")
    key, _ = issue_key(ada)
    open_row(process, user_id="ada", client_name="her-client")
    page = shown(browser(make_operator("staff", "view_user")), f"/admin/auth/user/{ada.pk}/change/")
    assert key.public not in page
    assert "her-client" not in page
    assert "callrecord" not in page


def test_keys_page_says_where_it_was_refused(client: Client) -> None:
    key, _ = issue_key(User.objects.create_user("ada"))
    now = timezone.now()
    CallRecord.objects.create(
        at=now, key=key.public, server_name="notes", outcome="refused", reason="not for this server", times=4
    )
    LimitHit.objects.create(rule="calls per key", subject=key.public, count=17, first_at=now, last_at=now)
    page = shown(client, f"/admin/access/apikey/{key.pk}/change/")
    assert "not for this server" in page
    assert "has refused it 17 times" in page
    assert f'href="{CLIENTS}?q={key.public}&amp;state__exact=all"' in page


def test_keys_that_are_revoked_are_listed_only_when_asked_for(client: Client) -> None:
    ada, now = User.objects.create_user("ada"), timezone.now()
    (kept, _), (expired, _), (revoked, _) = (issue_key(ada) for _ in range(3))
    type(kept).objects.filter(pk=expired.pk).update(expires_at=now - timedelta(days=3))
    type(kept).objects.filter(pk=revoked.pk).update(revoked_at=now)
    path = "/admin/access/apikey/"
    page = shown(client, path)
    assert kept.public in page
    assert expired.public in page
    assert "3 days ago" in page
    assert revoked.public not in page
    assert kept.public not in shown(client, f"{path}?state=expired")
    assert revoked.public in shown(client, f"{path}?state=revoked")
    assert revoked.public in shown(client, f"{path}?state=all")


# -- Scale -----------------------------------------------------------------------------------------------------------

LISTS = [SERVERS, CLIENTS, "/admin/auth/user/", "/admin/access/apikey/", "/admin/records/callrecord/"]


def fill(count: int) -> None:
    process, now = lost_process(), timezone.now()
    for number in range(count):
        name = f"{count}-{number}"
        server(name)
        issue_key(User.objects.create_user(name))
        open_row(process, server_name=name, user_id=name)
        CallRecord.objects.create(at=now, user_id=name, server_name=name, outcome="ok")


@pytest.mark.parametrize("path", LISTS)
def test_list_takes_as_many_queries_for_many_rows_as_for_few(client: Client, path: str) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            shown(client, path)
        return len(captured)

    fill(2)
    few = queries()
    fill(20)
    assert queries() == few
    assert few <= 12


def test_list_of_servers_reads_no_long_text(client: Client) -> None:
    server("time")
    with CaptureQueriesContext(connection) as captured:
        shown(client, SERVERS)
    read = [query["sql"].partition(" WHERE ")[0] for query in captured if 'FROM "records_serverrecord"' in query["sql"]]
    assert read
    assert not any("traceback" in sql or "tool_definitions" in sql for sql in read)


def test_pages_take_the_permission_of_their_rows_and_give_no_hint(process: HostProcess) -> None:
    row, there = open_row(process), server("time")
    stranger = browser(make_operator("staff"))
    for path in (
        SERVERS,
        f"{SERVERS}{there.pk}/change/",
        CLIENTS,
        f"{CLIENTS}{row.pk}/change/",
        f"{CLIENTS}{uuid4()}/change/",
    ):
        answer = stranger.get(path)
        assert answer.status_code == 403
        assert b"time" not in answer.content
    assert SessionRecord.objects.count() == 1
