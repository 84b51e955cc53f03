"""The connect page, its login, and `/` in a browser."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings

from gateway.access.store import issue_key
from gateway.apps import GatewayConfig
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from tests.support.logged_in import browser
from tests.support.processes import BUNDLED_SERVERS

pytestmark = pytest.mark.django_db

BROWSER = {"HTTP_ACCEPT": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEYS = override_settings(GUMCP_AUTH="keys", GUMCP_PUBLIC_URL="https://mcp.example.com", SECURE_SSL_REDIRECT=False)


@pytest.fixture(autouse=True)
def _three_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayConfig.current(), "registry", Registry(discover([BUNDLED_SERVERS])))


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password="adas-password")


@pytest.fixture
def client(ada: User) -> Client:
    return browser(ada)


@KEYS
def test_user_sees_what_to_enter_for_each_client_with_the_public_url_and_a_placeholder(
    client: Client, ada: User
) -> None:
    row, new = issue_key(ada, label="laptop")
    issue_key(User.objects.create_user("bob"), label="bobs")
    page = client.get("/-/connect/?server=time").content.decode()
    assert "claude mcp add --transport http time https://mcp.example.com/time --header" in page
    assert "https://mcp.example.com/time/ada:YOUR_KEY" in page
    assert row.public in page
    assert new.text not in page
    assert "bobs" not in page
    assert "cursor://" not in page
    assert 'href="?server=everything"' in page


@KEYS
def test_user_sees_the_servers_that_the_keys_are_for(client: Client, ada: User) -> None:
    assert "None of your keys" in client.get("/-/connect/").content.decode()
    issue_key(ada, scope={"time": None})
    page = client.get("/-/connect/").content.decode()
    assert "/time/ada:YOUR_KEY" in page
    assert "everything" not in page
    assert client.get("/-/connect/?server=everything").status_code == 404


def test_host_without_keys_gives_urls_without_keys_and_links_to_open(client: Client) -> None:
    page = client.get("/-/connect/?server=time").content.decode()
    assert "/time/ada</pre>" in page
    assert "Bearer" not in page
    assert 'href="cursor://anysphere.cursor-deeplink' in page


def test_server_that_there_is_not_has_no_page(client: Client) -> None:
    assert client.get("/-/connect/?server=%3Cb%3Enothing").status_code == 404


def test_stranger_is_sent_to_a_login_that_lets_in_users_who_are_not_operators(ada: User) -> None:
    client = Client()
    answer = client.get("/-/connect/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/-/login/?next=/-/connect/")
    login = answer.headers["Location"]
    assert b"Log in" in client.get(login).content
    assert client.post(login, {"username": "ada", "password": "wrong"}).status_code == 200
    answer = client.post(login, {"username": "ada", "password": "adas-password", "next": "https://evil.example/"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/-/connect/")
    assert client.get("/admin/").status_code == 302
    assert client.post("/-/logout/").status_code == 302
    assert client.get("/-/connect/").status_code == 302


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="2 per hour")
def test_failed_logins_count_together_with_those_of_the_admin(ada: User) -> None:
    client = Client()
    wrong = {"username": "ada", "password": "wrong"}
    paths = ("/-/login/", "/admin/login/", "/-/login/", "/admin/login/")
    assert [client.post(path, wrong).status_code for path in paths] == [200, 200, 429, 429]


def test_user_whose_name_cannot_stand_in_a_url_is_told(client: Client, ada: User) -> None:
    User.objects.filter(pk=ada.pk).update(username="a..b")
    page = client.get("/-/connect/").content.decode()
    assert "This user cannot have a key" in page
    assert "mcpServers" not in page


def test_operators_find_the_page_in_the_admin() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    assert 'href="/-/connect/"' in client.get("/admin/").content.decode()
    assert "Issue a key" not in client.get("/-/connect/").content.decode()
    with KEYS:
        assert "Issue a key" in client.get("/-/connect/").content.decode()


def test_browser_gets_a_page_at_the_root_and_everybody_else_json() -> None:
    client = Client()
    page = client.get("/", **BROWSER)
    assert page.headers["Content-Type"].startswith("text/html")
    for link in ("/-/connect/", "/-/login/", "/admin/"):
        assert f'href="{link}"' in page.content.decode()
    for accept in ({}, {"HTTP_ACCEPT": "*/*"}, {"HTTP_ACCEPT": "application/json"}):
        answer = client.get("/", **accept)
        assert answer.json()["message"] == "guMCP server running"
        assert answer.headers["Vary"] == "Accept"


def test_pages_have_no_inline_script_and_no_inline_style(client: Client) -> None:
    for path in ("/", "/-/connect/", "/-/login/"):
        page = client.get(path, **BROWSER)
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert not re.search(rb"<script(?![^>]*\bsrc=)[^>]*>\s*\S|<style|\sstyle=|\son[a-z]+=", page.content), path
