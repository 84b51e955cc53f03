"""The playground's page: who sees it, and which servers and users it offers."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.utils import timezone

from gateway.access.models import ApiKey
from gateway.access.store import issue_key, revoke_keys
from gateway.apps import GatewayConfig
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.records.models import ServerRecord
from tests.support.logged_in import browser, make_operator
from tests.support.processes import BUNDLED_SERVERS

pytestmark = pytest.mark.django_db

PAGE = "/-/playground/"
KEYS = override_settings(GUMCP_AUTH="keys")


@pytest.fixture(autouse=True)
def _three_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayConfig.current(), "registry", Registry(discover([BUNDLED_SERVERS])))


def logged_in(name: str, *permissions: str, is_staff: bool = True) -> Client:
    return browser(make_operator(name, *permissions, is_staff=is_staff))


@pytest.fixture
def client() -> Client:
    return logged_in("olga", "run_as")


def test_page_is_for_staff_with_the_permission(client: Client) -> None:
    assert client.get(PAGE).status_code == 200
    assert 'href="/-/playground/"' in client.get("/admin/").content.decode()
    assert client.post(PAGE).status_code == 405
    for other in (logged_in("otto", "revoke_apikey"), logged_in("ulf", "run_as", is_staff=False)):
        answer = other.get(PAGE)
        assert answer.status_code == 403
        assert b"permission" not in answer.content.lower()
    assert "playground" not in logged_in("iris", "view_apikey").get("/admin/").content.decode()
    answer = Client().get(PAGE)
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/admin/login/?next={PAGE}")


def test_page_has_nothing_inline_and_its_policy_adds_only_sounds(client: Client) -> None:
    page = client.get(PAGE)
    elsewhere = client.get("/admin/").headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"] == f"{elsewhere}; media-src data:"
    assert not re.search(rb"<script(?![^>]*\bsrc=)[^>]*>\s*\S|<style|\sstyle=|\son[a-z]+=", page.content)
    assert "no-store" in page.headers["Cache-Control"]


def test_host_without_keys_takes_a_user_id(client: Client) -> None:
    page = client.get(f"{PAGE}?server=time").content.decode()
    assert '<option value="time" selected>' in page
    assert re.search(r'<input type="text"[^>]* name="who" value="olga"', page)


@KEYS
def test_valid_keys_are_offered_by_their_public_part_with_the_servers_they_are_for(client: Client) -> None:
    ada = User.objects.create_user("ada")
    row, new = issue_key(ada, label="<b>laptop</b>", scope={"time": None})
    revoked, _ = issue_key(ada, label="revoked")
    revoke_keys([revoked])
    issue_key(ada, label="expired", expires_at=timezone.now() - timedelta(days=1))
    issue_key(User.objects.create_user("eve", is_active=False), label="disabled")
    page = client.get(f"{PAGE}?key={row.public}").content.decode()
    option = f'<option value="{row.public}" data-servers="[&quot;time&quot;]" selected>'
    assert f"{option}ada ({row.public}…, &lt;b&gt;laptop&lt;/b&gt;)" in page
    assert new.text not in page
    for label in ("revoked", "expired", "disabled"):
        assert label not in client.get(PAGE).content.decode()


@KEYS
def test_pages_of_servers_and_keys_lead_those_to_the_playground_who_may_use_it() -> None:
    key, _ = issue_key(User.objects.create_user("ada"))
    server = ServerRecord.objects.create(name="time", status="loaded", loaded_at=timezone.now())
    pages = (f"/admin/records/serverrecord/{server.pk}/change/", f"/admin/access/apikey/{key.pk}/change/")
    links = (f'href="{PAGE}?server=time"', f'href="{PAGE}?key={key.public}"')
    views = ("view_serverrecord", "view_apikey")
    for may_run, operator in ((True, logged_in("uma", "run_as", *views)), (False, logged_in("otto", *views))):
        for page, link in zip(pages, links, strict=True):
            assert (link in operator.get(page).content.decode()) == may_run
    revoke_keys([key])
    assert PAGE + "?key" not in logged_in("iris", "run_as", *views).get(pages[1]).content.decode()


@KEYS
def test_keys_are_searched_if_there_are_more_than_are_offered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.console.playground.MAX_OFFERED_KEYS", 2)
    for name in ("ada", "bob", "eve"):
        issue_key(User.objects.create_user(name))
    page = client.get(PAGE).content.decode()
    assert ("ada (" in page, "bob (" in page, "eve (" in page) == (True, True, False)
    assert "Only the 2 keys" in page
    eve = ApiKey.objects.get(user__username="eve")
    page = client.get(f"{PAGE}?key={eve.public}").content.decode()
    assert ("ada (" in page, f'<option value="{eve.public}" data-servers="" selected>' in page) == (True, True)
    page = client.get(f"{PAGE}?q=EVE").content.decode()
    assert ("ada (" in page, "eve (" in page) == (False, True)
