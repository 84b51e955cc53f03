"""The admin's side of keys: shown once, changed, revoked, and a trail that nobody edits."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.models import Session as DjangoSession
from django.test import Client, override_settings
from django.utils import timezone

from gateway.access.keys import KEY_PATTERN, key_digest
from gateway.access.models import ApiKey, AuditEvent, LimitHit
from gateway.access.store import issue_key
from gateway.records.models import ServerRecord
from tests.support.logged_in import browser, make_operator

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> User:
    return User.objects.create_superuser("operator", password="operators-password")


@pytest.fixture
def client(operator: User) -> Client:
    return browser(operator)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def form(user: User, allowed: dict[str, list[str] | None] | None = None, /, **fields: Any) -> dict[str, Any]:
    """The form of a key, with the marks that stand for the scope `allowed`."""
    marks: dict[str, Any] = {"scope": "every" if allowed is None else "some"}
    for server, tools in (allowed or {}).items():
        marks.setdefault("scope_servers", []).append(server)
        marks[f"scope_reach:{server}"] = "every" if tools is None else "some"
        marks.setdefault("scope_tools", []).extend(json.dumps([server, tool]) for tool in tools or ())
    return {"user": user.pk, "label": "", "expires_in": "never", **marks, **fields}


def moment(day: str, time: str) -> dict[str, str]:
    return {"expires_in": "date", "expires_on_0": day, "expires_on_1": time}


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


def test_scope_is_ticked_and_shown_as_it_was_ticked(client: Client, ada: User) -> None:
    now = timezone.now()
    for name, tools in (("time", []), ("notes", ["read", "write"]), ("gone", [])):
        status = "removed" if name == "gone" else "loaded"
        ServerRecord.objects.create(name=name, folder=f"/servers/{name}", status=status, loaded_at=now, tools=tools)
    page = client.get("/admin/access/apikey/add/").content.decode()
    assert re.findall(r'name="scope_servers" value="([^"]*)"', page) == ["notes", "time"]
    assert page.count('name="scope_tools"') == 2
    client.post("/admin/access/apikey/add/", form(ada, {"time": None, "notes": ["read"]}))
    row = ApiKey.objects.get()
    assert row.scope == {"time": None, "notes": ["read"]}
    page = client.get(f"/admin/access/apikey/{row.pk}/change/").content.decode()
    assert page.count('name="scope_servers" value="time" checked') == 1
    assert re.findall(r'name="scope_tools" value="([^"]*)" checked', page) == ["[&quot;notes&quot;, &quot;read&quot;]"]


@pytest.mark.parametrize(
    "marks",
    [
        {"scope": ""},
        {"scope": "all"},
        {"scope": "some"},
        {"scope": "every", "scope_servers": ["time"]},
        {"scope": "some", "scope_servers": ["time"], "scope_reach:time": "every", "scope_tools": ['["time", "now"]']},
        {"scope": "some", "scope_servers": ["time"], "scope_reach:time": "every", "scope_other:time": "now"},
        {"scope": "some", "scope_servers": ["time"], "scope_reach:time": "nonsense"},
        {"scope": "some", "scope_servers": ["time"], "scope_tools": ['["notes", "read"]']},
        {"scope": "some", "scope_servers": ["time"], "scope_tools": ["nonsense"]},
        {"scope": "some", "scope_servers": ["a\x00b"]},
        {
            "scope": "some",
            "scope_servers": ["time"],
            "scope_reach:time": "some",
            "scope_tools": ['["time", "\\ud800"]'],
        },
        {"scope": "some", "scope_servers": ["time"], "scope_tools": ["[" * 20_000]},
    ],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_marks_that_contradict_each_other_are_refused(
    client: Client, ada: User, marks: dict[str, Any], is_new: bool
) -> None:
    row, _ = issue_key(ada, scope={"time": None})
    page = "/admin/access/apikey/add/" if is_new else f"/admin/access/apikey/{row.pk}/change/"
    answer = client.post(page, form(ada, **marks))
    assert answer.status_code == 200
    assert b"Please correct the error" in answer.content
    assert ApiKey.objects.get().scope == {"time": None}


def test_names_of_tools_that_are_not_known_yet_are_typed(client: Client, ada: User) -> None:
    marks = {"scope_servers": ["time"], "scope_reach:time": "some", "scope_other:time": "now, , later "}
    client.post("/admin/access/apikey/add/", form(ada, scope="some", **marks))
    assert ApiKey.objects.get().scope == {"time": ["later", "now"]}


def test_server_without_any_of_its_tools_stays_so(client: Client, ada: User) -> None:
    client.post("/admin/access/apikey/add/", form(ada, {"time": []}))
    assert ApiKey.objects.get().scope == {"time": []}


@pytest.mark.parametrize("unusable", [["time"], "", {}])
def test_scope_that_cannot_be_used_has_to_be_chosen_anew(client: Client, ada: User, unusable: Any) -> None:
    row, _ = issue_key(ada)
    ApiKey.objects.update(scope=unusable)
    page = f"/admin/access/apikey/{row.pk}/change/"
    assert " checked" not in client.get(page).content.decode()
    client.post(page, form(ada, {"time": None}))
    assert ApiKey.objects.get().scope == {"time": None}


def test_page_of_a_new_key_has_the_urls_and_client_configurations_of_its_servers(client: Client, ada: User) -> None:
    with override_settings(GUMCP_AUTH="keys", GUMCP_PUBLIC_URL="https://mcp.example.com"):
        page = client.post("/admin/access/apikey/add/", form(ada, {"time": None, "notes": None})).content.decode()
    [key] = set(re.findall(KEY_PATTERN, page))
    assert f"https://mcp.example.com/time/ada:{key}" in page
    assert f"https://mcp.example.com/notes/ada:{key}" in page
    assert "claude mcp add --transport http time https://mcp.example.com/time --header" in page
    assert 'href="vscode:mcp/install?' in page
    assert 'href="cursor://anysphere.cursor-deeplink/mcp/install?' in page


@pytest.mark.parametrize("days", [7, 30, 90, 365])
def test_expiry_is_chosen_by_preset_and_kept_until_another_is_chosen(client: Client, ada: User, days: int) -> None:
    client.post("/admin/access/apikey/add/", form(ada, expires_in=str(days)))
    row = ApiKey.objects.get()
    expires_at = row.expires_at
    assert expires_at is not None
    assert abs(expires_at - timezone.now() - timedelta(days=days)) < timedelta(minutes=5)
    page = f"/admin/access/apikey/{row.pk}/change/"
    client.post(page, form(ada, label="again", expires_in="keep"))
    row.refresh_from_db()
    assert (row.label, row.expires_at) == ("again", expires_at)
    client.post(page, form(ada, label="again", expires_in="never"))
    row.refresh_from_db()
    assert row.expires_at is None


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_in": "never", "expires_on_0": "2100-12-31", "expires_on_1": "18:00:00"},
        {"expires_in": "date"},
        {"expires_in": "keep"},
        {"expires_in": "8"},
    ],
)
def test_expiry_that_is_not_clear_is_refused(client: Client, ada: User, fields: dict[str, str]) -> None:
    assert b"Please correct" in client.post("/admin/access/apikey/add/", form(ada, **fields)).content
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("name", ["messages", "a..b", "a\x85b"])
def test_user_whose_name_is_no_user_id_gets_no_key(client: Client, name: str) -> None:
    answer = client.post("/admin/access/apikey/add/", form(User.objects.create_user(name)))
    assert b"This user cannot have a key" in answer.content
    assert not ApiKey.objects.exists()


def test_moment_that_has_passed_is_no_expiry(client: Client, ada: User) -> None:
    past = timezone.now() - timedelta(days=1)
    fields = moment(past.strftime("%Y-%m-%d"), "12:00:00")
    assert b"has passed" in client.post("/admin/access/apikey/add/", form(ada, **fields)).content


def test_change_keeps_the_key_its_owner_and_a_revocation(client: Client, ada: User) -> None:
    row, _ = issue_key(ada)
    bob = User.objects.create_user("bob")
    digest = bytes(row.digest)
    answer = client.post(f"/admin/access/apikey/{row.pk}/change/", form(bob, {"time": None}, label="phone"))
    assert answer.status_code == 302
    row.refresh_from_db()
    assert (row.user, row.label, row.scope, bytes(row.digest)) == (ada, "phone", {"time": None}, digest)
    ApiKey.objects.update(revoked_at=timezone.now())
    page = f"/admin/access/apikey/{row.pk}/change/"
    assert client.get(page).status_code == 200
    assert client.post(page, form(ada, label="again")).status_code == 403


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
    row, _ = issue_key(ada)
    client = browser(make_operator("staff"))
    assert client.get("/admin/access/apikey/").status_code == 403
    assert client.post("/admin/access/apikey/add/", form(ada)).status_code == 403
    assert client.post("/admin/access/apikey/", {"action": "revoke", "_selected_action": [row.pk]}).status_code == 403
    assert client.get("/admin/access/auditevent/").status_code == 403


def test_what_operators_do_is_in_the_trail(client: Client, ada: User) -> None:
    client.post("/admin/access/apikey/add/", form(ada, label="laptop"))
    row = ApiKey.objects.get()
    client.post(f"/admin/access/apikey/{row.pk}/change/", form(ada, {"time": None}, label="laptop"))
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
    limited = moment("2100-12-31", "18:00:00")
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


USER_FORM = {"is_active": "on", "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}


def test_operator_who_may_change_users_gives_no_rights(operator: User, ada: User) -> None:
    clerk = browser(make_operator("clerk", "view_user", "change_user", "delete_user", "change_group", "view_group"))
    group = Group.objects.create(name="all")
    rights = [str(row.pk) for row in Permission.objects.all()]
    for user in (User.objects.get(username="clerk"), ada):
        wanted = {"is_superuser": "on", "is_staff": "on", "groups": [group.pk], "user_permissions": rights}
        page = f"/admin/auth/user/{user.pk}/change/"
        assert (
            clerk.post(page, {**USER_FORM, "username": user.username, "first_name": "New", **wanted}).status_code == 302
        )
        user.refresh_from_db()
        assert (user.first_name, user.is_superuser, user.groups.count()) == ("New", False, 0)
        assert user.is_staff == (user != ada)
    assert (
        clerk.post(f"/admin/auth/group/{group.pk}/change/", {"name": "some", "permissions": rights}).status_code == 302
    )
    group.refresh_from_db()
    assert (group.name, group.permissions.count()) == ("some", 0)


@pytest.mark.parametrize("is_active", [True, False])
def test_operator_changes_nobody_who_has_more_rights(operator: User, ada: User, is_active: bool) -> None:
    clerk = browser(make_operator("clerk", "view_user", "change_user", "delete_user"))
    make_operator("keeper", "revoke_apikey")
    User.objects.exclude(username="clerk").update(is_active=is_active)
    passwords = {"password1": "Xk29-dkfjslw", "password2": "Xk29-dkfjslw", "usable_password": "true"}
    for user in (operator, User.objects.get(username="keeper")):
        page = f"/admin/auth/user/{user.pk}"
        assert clerk.get(f"{page}/change/").status_code == 200
        assert clerk.post(f"{page}/change/", {**USER_FORM, "username": "other"}).status_code == 403
        assert clerk.post(f"{page}/password/", passwords).status_code == 403
        assert clerk.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
        chosen = {"action": "delete_selected", "_selected_action": [user.pk], "post": "yes"}
        clerk.post("/admin/auth/user/", chosen)
        assert User.objects.filter(pk=user.pk, username=user.username).exists()
    assert clerk.post(f"/admin/auth/user/{ada.pk}/password/", passwords).status_code == 302


def test_superuser_gives_rights(client: Client, ada: User) -> None:
    wanted = {**USER_FORM, "username": "ada", "is_superuser": "on", "is_staff": "on"}
    assert client.post(f"/admin/auth/user/{ada.pk}/change/", wanted).status_code == 302
    ada.refresh_from_db()
    assert ada.is_superuser
