"""The admin's side of keys: shown once, changed, revoked, and a trail that nobody edits."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session as DjangoSession
from django.test import Client
from django.utils import timezone

from gateway.access.keys import KEY_PATTERN, key_digest
from gateway.access.models import ApiKey, AuditEvent, LimitHit
from gateway.access.store import issue_key
from gateway.records.models import ServerRecord

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> User:
    return User.objects.create_superuser("operator", password="operators-password")


@pytest.fixture
def client(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def form(user: User, **fields: Any) -> dict[str, Any]:
    return {"user": user.pk, "label": "", "scope": "", "expires_at_0": "", "expires_at_1": "", **fields}


def test_key_is_shown_once_and_kept_nowhere(client: Client, ada: User) -> None:
    answer = client.post("/admin/access/apikey/add/", form(ada, label="laptop"))
    assert answer.status_code == 200
    assert "no-store" in answer.headers["Cache-Control"]
    [text] = set(re.findall(KEY_PATTERN, answer.content.decode()))
    row = ApiKey.objects.get()
    assert (row.user, row.label, bytes(row.digest)) == (ada, "laptop", key_digest(text))
    assert text.startswith(row.public)
    for page in (
        "/admin/",
        "/admin/access/apikey/",
        f"/admin/access/apikey/{row.pk}/change/",
        "/admin/access/auditevent/",
    ):
        shown = client.get(page)
        assert shown.status_code == 200
        assert text not in shown.content.decode()
    assert not any(text in str(session.get_decoded()) for session in DjangoSession.objects.all())
    assert not any(text in morsel.value for morsel in client.cookies.values())


def test_scope_of_another_form_is_refused(client: Client, ada: User) -> None:
    unstorable = (r'{"\u0000": null}', r'{"time": ["\ud800"]}')
    for scope in (
        '["time"]',
        '{"time": "all"}',
        '{"time": [1]}',
        "{}",
        "[]",
        '""',
        "0",
        "false",
        "nonsense",
        *unstorable,
    ):
        answer = client.post("/admin/access/apikey/add/", form(ada, scope=scope))
        assert b"Please correct the error" in answer.content, scope
    client.post("/admin/access/apikey/add/", form(ada, scope='{"time": null, "notes": ["read"]}'))
    assert ApiKey.objects.get().scope == {"time": None, "notes": ["read"]}


@pytest.mark.parametrize("depth", [9, 500, 990, 20_000, 200_000])
@pytest.mark.parametrize("is_new", [True, False])
def test_scope_that_nests_too_deeply_or_cannot_be_read_is_refused(
    client: Client, ada: User, depth: int, is_new: bool
) -> None:
    row, _ = issue_key(ada, scope={"time": None})
    page = "/admin/access/apikey/add/" if is_new else f"/admin/access/apikey/{row.pk}/change/"
    for scope in ("[" * depth + "]" * depth, '{"time":' * depth + "null" + "}" * depth, "1" * depth):
        answer = client.post(page, form(ada, scope=scope))
        assert answer.status_code == 200
        assert b"Please correct the error" in answer.content
    assert ApiKey.objects.get().scope == {"time": None}


@pytest.mark.parametrize("scope", ["", "null"])
def test_key_for_every_server_is_issued_and_saved_as_the_form_writes_that(
    client: Client, ada: User, scope: str
) -> None:
    client.post("/admin/access/apikey/add/", form(ada, scope=scope))
    row = ApiKey.objects.get()
    assert row.scope is None
    page = f"/admin/access/apikey/{row.pk}/change/"
    shown = client.get(page).context["adminform"].form["scope"].value()
    assert client.post(page, form(ada, label="again", scope=shown)).status_code == 302
    row.refresh_from_db()
    assert (row.label, row.scope) == ("again", None)


@pytest.mark.parametrize("name", ["messages", "a..b", "a\x85b"])
def test_user_whose_name_is_no_user_id_gets_no_key(client: Client, name: str) -> None:
    answer = client.post("/admin/access/apikey/add/", form(User.objects.create_user(name)))
    assert b"This user cannot have a key" in answer.content
    assert not ApiKey.objects.exists()


def test_moment_that_has_passed_is_no_expiry(client: Client, ada: User) -> None:
    past = timezone.now() - timedelta(days=1)
    fields = {"expires_at_0": past.strftime("%Y-%m-%d"), "expires_at_1": "12:00:00"}
    assert b"has passed" in client.post("/admin/access/apikey/add/", form(ada, **fields)).content


def test_change_keeps_the_key_its_owner_and_a_revocation(client: Client, ada: User) -> None:
    row, _ = issue_key(ada)
    bob = User.objects.create_user("bob")
    digest = bytes(row.digest)
    answer = client.post(f"/admin/access/apikey/{row.pk}/change/", form(bob, label="phone", scope='{"time": null}'))
    assert answer.status_code == 302
    row.refresh_from_db()
    assert (row.user, row.label, row.scope, bytes(row.digest)) == (ada, "phone", {"time": None}, digest)
    ApiKey.objects.update(revoked_at=timezone.now())
    assert client.post(f"/admin/access/apikey/{row.pk}/change/", form(ada, label="again")).status_code == 403


def test_revoked_keys_stay_listed_and_cannot_be_deleted(client: Client, ada: User) -> None:
    row, _ = issue_key(ada)
    action = {"action": "revoke", "_selected_action": [row.pk]}
    assert client.post("/admin/access/apikey/", action).status_code == 302
    row.refresh_from_db()
    revoked_at = row.revoked_at
    assert revoked_at is not None
    assert row.state == "revoked"
    client.post("/admin/access/apikey/", action)
    row.refresh_from_db()
    assert row.revoked_at == revoked_at
    assert client.post(f"/admin/access/apikey/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post("/admin/access/apikey/", {"action": "delete_selected", "_selected_action": [row.pk]})
    assert ApiKey.objects.filter(pk=row.pk).exists()


def test_staff_without_permission_neither_sees_nor_issues_nor_revokes(ada: User) -> None:
    staff = User.objects.create_user("staff", is_staff=True)
    row, _ = issue_key(ada)
    client = Client()
    client.force_login(staff)
    assert client.get("/admin/access/apikey/").status_code == 403
    assert client.post("/admin/access/apikey/add/", form(ada)).status_code == 403
    assert client.post("/admin/access/apikey/", {"action": "revoke", "_selected_action": [row.pk]}).status_code == 403
    assert client.get("/admin/access/auditevent/").status_code == 403


def test_what_operators_do_is_in_the_trail(client: Client, ada: User) -> None:
    client.post("/admin/access/apikey/add/", form(ada, label="laptop"))
    row = ApiKey.objects.get()
    client.post(f"/admin/access/apikey/{row.pk}/change/", form(ada, label="laptop", scope='{"time": null}'))
    client.post("/admin/access/apikey/", {"action": "revoke", "_selected_action": [row.pk]})
    server = ServerRecord.objects.create(name="time", folder="/servers/time", status="loaded", loaded_at=timezone.now())
    client.post("/admin/records/serverrecord/", {"action": "disable_servers", "_selected_action": [server.pk]})
    trail = [(event.actor, event.action, event.address) for event in AuditEvent.objects.order_by("id")]
    assert trail == [
        ("operator", "key issued", "127.0.0.1"),
        ("operator", "key changed", "127.0.0.1"),
        ("operator", "key revoked", "127.0.0.1"),
        ("operator", "server changed", ""),
    ]
    assert AuditEvent.objects.get(action="key issued").detail == "ada: every server"
    assert AuditEvent.objects.get(action="key changed").detail == 'scope: {"time": null}'
    assert AuditEvent.objects.get(action="server changed").detail == "Switched off."
    assert row.public in AuditEvent.objects.get(action="key revoked").target


def test_trail_says_how_long_a_key_is_for_and_nothing_where_nothing_was_changed(client: Client, ada: User) -> None:
    limited = {"expires_at_0": "2100-12-31", "expires_at_1": "18:00:00"}
    client.post("/admin/access/apikey/add/", form(ada, **limited))
    row = ApiKey.objects.get()
    for fields in (limited, {}):
        assert client.post(f"/admin/access/apikey/{row.pk}/change/", form(ada, **fields)).status_code == 302
    assert list(AuditEvent.objects.order_by("id").values_list("action", "detail")) == [
        ("key issued", "ada: until 2100-12-31 18:00 UTC, every server"),
        ("key changed", "expires_at: every server"),
    ]


@pytest.mark.parametrize(("model", "page"), [(User, "user"), (Group, "group")])
def test_rows_that_are_deleted_together_are_each_in_the_trail(client: Client, model: Any, page: str) -> None:
    field = "username" if model is User else "name"
    rows = [model.objects.create(**{field: name}) for name in ("first", "second")]
    action = {"action": "delete_selected", "_selected_action": [row.pk for row in rows], "post": "yes"}
    assert client.post(f"/admin/auth/{page}/", action).status_code == 302
    assert not model.objects.filter(**{f"{field}__in": ["first", "second"]}).exists()
    trail = {(event.actor, event.action, event.target) for event in AuditEvent.objects.all()}
    assert trail == {("operator", f"{page} deleted", name) for name in ("first", "second")}
    assert AuditEvent.objects.count() == 2


def test_user_that_is_deleted_alone_is_in_the_trail_once(client: Client, ada: User) -> None:
    assert client.post(f"/admin/auth/user/{ada.pk}/delete/", {"post": "yes"}).status_code == 302
    event = AuditEvent.objects.get()
    assert (event.actor, event.action, event.target) == ("operator", "user deleted", "ada")


def test_trail_is_shown_and_changed_by_nobody(client: Client, ada: User) -> None:
    client.post("/admin/access/apikey/add/", form(ada))
    event = AuditEvent.objects.get()
    assert event.target in client.get("/admin/access/auditevent/").content.decode()
    page = f"/admin/access/auditevent/{event.pk}"
    assert client.get(f"{page}/change/").status_code == 200
    assert client.post(f"{page}/change/", {"actor": "nobody"}).status_code == 403
    assert client.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
    assert client.post("/admin/access/auditevent/add/", {}).status_code == 403
    client.post("/admin/access/auditevent/", {"action": "delete_selected", "_selected_action": [event.pk]})
    assert AuditEvent.objects.get().actor == "operator"
    with pytest.raises(TypeError):
        event.save()
    with pytest.raises(TypeError):
        event.delete()


def test_refusals_are_shown(client: Client) -> None:
    now = timezone.now()
    LimitHit.objects.create(rule="failed keys", subject="192.0.2.7", count=9970, first_at=now, last_at=now)
    page = client.get("/admin/access/limithit/").content.decode()
    assert "192.0.2.7" in page
    assert "9970" in page


def test_pages_have_a_policy_without_inline_scripts(client: Client) -> None:
    for page in ("/admin/", "/admin/login/", "/admin/access/apikey/", "/admin/access/apikey/add/", "/"):
        answer = client.get(page)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert not re.search(rb"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>\s*\S", answer.content), page
        assert b"<style" not in answer.content
