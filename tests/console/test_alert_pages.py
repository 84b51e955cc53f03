"""The admin's pages of alerts: who may see and change what, the secret that is shown once, the test."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from gateway.access.models import AuditEvent
from gateway.alerts.models import Alert, AlertDestination, AlertMessage
from gateway.alerts.outbox import note_result, take_due
from gateway.alerts.signing import shown_secret
from tests.support.logged_in import browser, make_operator

pytestmark = pytest.mark.django_db

PAGES = "/admin/alerts/alertdestination/"
TOKEN = "token-of-the-receiver"


@pytest.fixture
def client() -> Client:
    return browser(User.objects.create_superuser("root"))


@pytest.fixture
def viewer() -> Client:
    return browser(make_operator("viewer", "view_alertdestination", "view_alert"))


@pytest.fixture
def pager() -> AlertDestination:
    return AlertDestination.objects.create(name="pager", url=f"https://example.com/{TOKEN}")


def form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "pager",
        "kind": "webhook",
        "url": f"https://example.com/{TOKEN}",
        "addresses": "",
        "events": ["host_degraded", "key_expires"],
        "is_enabled": "on",
        **fields,
    }


def test_secret_of_a_new_webhook_is_shown_once(client: Client) -> None:
    response = client.post(f"{PAGES}add/", form())
    destination = AlertDestination.objects.get()
    secret = shown_secret(destination.salt)
    assert secret in response.content.decode()
    assert "no-store" in response.headers["Cache-Control"]
    assert destination.events == ["host_degraded", "key_expires"]
    seen = [client.get(path).content.decode() for path in (PAGES, f"{PAGES}{destination.pk}/change/", "/admin/")]
    seen += [str(list(model.objects.values())) for model in (AlertDestination, AuditEvent)]
    for text in seen:
        assert secret not in text
        assert secret.removeprefix("whsec_") not in text


def test_new_secret_is_another_one_and_is_in_the_audit_log(client: Client, pager: AlertDestination) -> None:
    before = shown_secret(pager.salt)
    response = client.post(f"{PAGES}{pager.pk}/secret/")
    pager.refresh_from_db()
    after = shown_secret(pager.salt)
    assert after != before
    assert after in response.content.decode()
    assert "no-store" in response.headers["Cache-Control"]
    assert AuditEvent.objects.filter(actor="root", action="alert secret renewed", target="pager").exists()


def test_test_is_sent_and_its_result_is_on_the_page(client: Client, pager: AlertDestination) -> None:
    page = f"{PAGES}{pager.pk}/change/"
    assert "Send a test" in client.get(page).content.decode()
    assert client.post(f"{PAGES}{pager.pk}/test/", follow=True).status_code == 200
    assert AuditEvent.objects.filter(actor="root", action="alert tested", target="pager").exists()
    (message,) = take_due((), 8)
    note_result(message, "The receiver answered with status 500.")
    text = client.get(page).content.decode()
    assert "This is a test. Nothing is wrong." in text
    assert "The receiver answered with status 500." in text
    assert "Failing" in client.get(PAGES).content.decode()


@pytest.mark.parametrize("button", ["test", "secret"])
def test_buttons_need_a_post_with_a_token_and_the_permission_to_change(
    button: str, client: Client, viewer: Client, pager: AlertDestination
) -> None:
    path = f"{PAGES}{pager.pk}/{button}/"
    assert client.get(path).status_code == 405
    assert viewer.post(path).status_code == 403
    assert Client(enforce_csrf_checks=True).post(path).status_code in (302, 403)
    checked = browser(User.objects.get(username="root"), enforce_csrf_checks=True)
    assert checked.post(path).status_code == 403
    assert client.post(f"{PAGES}999/{button}/").status_code == 404
    assert not AlertMessage.objects.exists()
    assert not AuditEvent.objects.filter(action__startswith="alert ").exists()


def test_disabled_destination_is_not_tested(client: Client, pager: AlertDestination) -> None:
    AlertDestination.objects.update(is_enabled=False)
    text = client.post(f"{PAGES}{pager.pk}/test/", follow=True).content.decode()
    assert "not enabled" in text
    assert not AlertMessage.objects.exists()


def test_viewer_sees_where_a_webhook_leads_but_not_its_path(viewer: Client, pager: AlertDestination) -> None:
    for path in (PAGES, f"{PAGES}{pager.pk}/change/"):
        text = viewer.get(path).content.decode()
        assert "https://example.com/…" in text
        assert TOKEN not in text
        assert "New signing secret" not in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"url": "http://127.0.0.1/"}, "The URL names a private address"),
        ({"kind": "email", "addresses": "a@example.com"}, "This host has no mail server. Set GUMCP_EMAIL_URL"),
        ({"events": []}, "This field is required."),
        ({"events": ["nothing"]}, "is not one of the available choices"),
    ],
)
def test_destination_that_cannot_be_used_is_refused_beside_its_field(
    fields: dict[str, Any], sentence: str, client: Client
) -> None:
    response = client.post(f"{PAGES}add/", form(**fields))
    assert sentence in response.content.decode()
    assert not AlertDestination.objects.exists()


def test_mail_addresses_are_kept_and_no_secret_is_shown(client: Client, settings: Any) -> None:
    settings.GUMCP_EMAIL_URL = {"EMAIL_HOST": "127.0.0.1"}
    sent = form(kind="email", addresses="a@example.com,b@example.com")
    text = client.post(f"{PAGES}add/", sent, follow=True).content.decode()
    destination = AlertDestination.objects.get()
    assert (destination.addresses, destination.url) == ("a@example.com, b@example.com", "")
    assert "whsec_" not in text
    assert "New signing secret" not in text


def test_alerts_that_are_open_are_listed_first_of_all_and_nobody_changes_them(client: Client, viewer: Client) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    opened = Alert.objects.create(event="server_failed", subject="notes", text=f"The server {hostile} fails.")
    Alert.objects.create(event="key_expires", subject="k", text="Past.", ending="revoked.", ended_at=timezone.now())
    text = viewer.get("/admin/alerts/alert/").content.decode()
    assert "Past." not in text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "Past." in viewer.get("/admin/alerts/alert/?state=over").content.decode()
    page = client.get(f"/admin/alerts/alert/{opened.pk}/change/").content.decode()
    assert not re.search(r'<input type="submit"', page)
    assert client.get("/admin/alerts/alert/add/").status_code == 403


def test_changes_and_deletions_are_in_the_audit_log(client: Client, pager: AlertDestination) -> None:
    client.post(f"{PAGES}{pager.pk}/change/", form(name="phone"))
    client.post(f"{PAGES}{pager.pk}/delete/", {"post": "yes"})
    actions = list(AuditEvent.objects.order_by("id").values_list("action", "target"))
    assert actions == [("alert destination changed", "phone"), ("alert destination deleted", "phone")]
    assert TOKEN not in str(list(AuditEvent.objects.values()))
